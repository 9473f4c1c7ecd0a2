"""Retrieval from a collection."""

from typing import Any, Self, Unpack

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.utils import Secret
from pydantic import SecretStr

from kvblend.sdk.frameworks.collection_search import CollectionSearch
from kvblend.sdk.haystack.documents import to_document
from kvblend.sdk.haystack.secrets import KEY_OF_ENVIRONMENT
from kvblend.sdk.routes import RetrievalFields

__all__ = ["KVBlendRetriever"]


@component
class KVBlendRetriever:
    """Retrieves passages from a collection of a kvblend service, best first.

    Where `api_base_url` is not given it is that of `KVBLEND_URL`; the key is that of `KVBLEND_API_KEY`, if it is set.
    """

    def __init__(
        self,
        collection: str,
        *,
        top_k: int = 8,
        api_base_url: str | None = None,
        api_key: Secret = KEY_OF_ENVIRONMENT,
        timeout_s: float = 60.0,
        **retrieval: Unpack[RetrievalFields],
    ) -> None:
        """`retrieval`: `mode` (hybrid, vector or keyword), `filter` of metadata, `min_score`, `neighbors`, `rerank`,
        `rerank_candidates`. Raises pydantic's ValidationError, a ValueError, for what these cannot be."""
        self.top_k = top_k
        self.api_base_url = api_base_url
        self.api_key = api_key
        given = {} if api_base_url is None else {"base_url": api_base_url}
        self._search = CollectionSearch(collection=collection, api_key=None, timeout_s=timeout_s, **given, **retrieval)

    def to_dict(self) -> dict[str, Any]:
        """Serialize this component. Raises ValueError where the key is a token: one of the environment is named."""
        return default_to_dict(
            self,
            top_k=self.top_k,
            api_base_url=self.api_base_url,
            api_key=self.api_key,
            **self._search.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"base_url", "api_key"}),
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Make a component of what `to_dict` gave."""
        return default_from_dict(cls, data)

    @component.output_types(documents=list[Document])
    def run(self, query: str, top_k: int | None = None) -> dict[str, list[Document]]:
        """Return at most `top_k` passages as `documents`. Raises what `kvblend.sdk.Client.search` does."""
        sources = self._searching().search(query, top_k=self.top_k if top_k is None else top_k)
        return {"documents": [to_document(source) for source in sources]}

    @component.output_types(documents=list[Document])
    async def run_async(self, query: str, top_k: int | None = None) -> dict[str, list[Document]]:
        """As `run`."""
        sources = await self._searching().asearch(query, top_k=self.top_k if top_k is None else top_k)
        return {"documents": [to_document(source) for source in sources]}

    def _searching(self) -> CollectionSearch:
        key = self.api_key.resolve_value()  # as late as Haystack's own components do
        return self._search.model_copy(update={"api_key": SecretStr(key) if key else None})
