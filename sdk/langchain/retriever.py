"""Retrieval from a collection."""

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import Field, SecretStr

from kvblend.core.rest import MetadataFilter, SearchMode
from kvblend.sdk import AsyncClient, Client
from kvblend.sdk.langchain.documents import to_document
from kvblend.sdk.langchain.environment import api_key_of_environment, url_of_environment
from kvblend.sdk.routes import RetrievalFields

__all__ = ["KVBlendRetriever"]


class KVBlendRetriever(BaseRetriever):
    """Retrieves passages from a collection of a kvblend service, best first.

    Where `base_url` or `api_key` is not given it is that of `KVBLEND_URL` or `KVBLEND_API_KEY`.
    """

    collection: str
    base_url: str = Field(default_factory=url_of_environment)
    api_key: SecretStr | None = Field(default_factory=api_key_of_environment)
    timeout_s: float = 60.0
    k: int = 8
    """How many passages to retrieve."""
    mode: SearchMode | None = None
    filter: MetadataFilter | None = None
    min_score: float | None = None
    neighbors: int = 0
    rerank: bool = False

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        with Client(self.base_url, api_key=self._secret, timeout_s=self.timeout_s) as client:
            sources = client.search(self.collection, query, top_k=self.k if k is None else k, **self._retrieval)
        return [to_document(source) for source in sources]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        async with AsyncClient(self.base_url, api_key=self._secret, timeout_s=self.timeout_s) as client:
            sources = await client.search(self.collection, query, top_k=self.k if k is None else k, **self._retrieval)
        return [to_document(source) for source in sources]

    @property
    def _retrieval(self) -> RetrievalFields:
        return {
            "mode": self.mode,
            "filter": self.filter,
            "min_score": self.min_score,
            "neighbors": self.neighbors,
            "rerank": self.rerank,
        }

    @property
    def _secret(self) -> str | None:
        return None if self.api_key is None else self.api_key.get_secret_value()
