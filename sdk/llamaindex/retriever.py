"""Retrieval from a collection."""

from typing import Any, Unpack

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import NodeWithScore, QueryBundle

from kvblend.sdk.frameworks.collection_search import CollectionSearch
from kvblend.sdk.llamaindex.nodes import to_node
from kvblend.sdk.routes import RetrievalFields

__all__ = ["KVBlendRetriever"]


class KVBlendRetriever(BaseRetriever):
    """Retrieves passages from a collection of a kvblend service, best first.

    Where `api_base` or `api_key` is not given it is that of `KVBLEND_URL` or `KVBLEND_API_KEY`.
    """

    def __init__(
        self,
        collection: str,
        *,
        similarity_top_k: int = 8,
        api_base: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        callback_manager: CallbackManager | None = None,
        **retrieval: Unpack[RetrievalFields],
    ) -> None:
        """`retrieval`: `mode` (hybrid, vector or keyword), `filter` of metadata, `min_score`, `neighbors`, `rerank`,
        `rerank_candidates`. Raises pydantic's ValidationError, a ValueError, for what these cannot be."""
        super().__init__(callback_manager=callback_manager)
        place: dict[str, Any] = {"base_url": api_base, "api_key": api_key}
        given = {name: value for name, value in place.items() if value is not None}
        self.similarity_top_k = similarity_top_k
        self._search = CollectionSearch(collection=collection, timeout_s=timeout_s, **given, **retrieval)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        sources = self._search.search(query_bundle.query_str, top_k=self.similarity_top_k)
        return [to_node(source) for source in sources]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        sources = await self._search.asearch(query_bundle.query_str, top_k=self.similarity_top_k)
        return [to_node(source) for source in sources]
