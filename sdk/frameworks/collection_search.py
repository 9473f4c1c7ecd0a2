"""A framework's retriever: the collection that it searches, and how."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from kvblend.core.rest import MetadataFilter, SearchMode, Source
from kvblend.sdk import AsyncClient, Client
from kvblend.sdk.frameworks.environment import api_key_of_environment, url_of_environment
from kvblend.sdk.routes import RetrievalFields

__all__ = ["CollectionSearch", "metadata_of"]


def metadata_of(source: Source) -> dict[str, Any]:
    """A passage's metadata: its ingested document's own; under `kvblend`, unless that has such a key, stand
    `document_id`, `document_name` and `score`."""
    found = {"document_id": source.document_id, "document_name": source.document_name, "score": source.score}
    return {"kvblend": found, **source.metadata}


class CollectionSearch(BaseModel):
    """Fields as of `kvblend.core.rest.RetrievalChoices`, mixed into a framework's retriever or held by it.

    Where `base_url` or `api_key` is not given it is that of `KVBLEND_URL` or `KVBLEND_API_KEY`.
    """

    model_config = ConfigDict(extra="forbid")

    collection: str
    base_url: str = Field(default_factory=url_of_environment)
    api_key: SecretStr | None = Field(default_factory=api_key_of_environment)
    timeout_s: float = 60.0
    mode: SearchMode | None = None
    filter: MetadataFilter | None = None
    min_score: float | None = None
    neighbors: int = 0
    rerank: bool = False
    rerank_candidates: int = 32

    def search(self, query: str, *, top_k: int) -> list[Source]:
        """Return at most `top_k` passages, best first. Raises what `Client.search` does."""
        with Client(self.base_url, api_key=self._secret, timeout_s=self.timeout_s) as client:
            return client.search(self.collection, query, top_k=top_k, **self._retrieval)

    async def asearch(self, query: str, *, top_k: int) -> list[Source]:
        """As `search`."""
        async with AsyncClient(self.base_url, api_key=self._secret, timeout_s=self.timeout_s) as client:
            return await client.search(self.collection, query, top_k=top_k, **self._retrieval)

    @property
    def _retrieval(self) -> RetrievalFields:
        return {
            "mode": self.mode,
            "filter": self.filter,
            "min_score": self.min_score,
            "neighbors": self.neighbors,
            "rerank": self.rerank,
            "rerank_candidates": self.rerank_candidates,
        }

    @property
    def _secret(self) -> str | None:
        return None if self.api_key is None else self.api_key.get_secret_value()
