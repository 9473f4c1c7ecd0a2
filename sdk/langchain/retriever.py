"""Retrieval from a collection."""

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from kvblend.sdk.frameworks.collection_search import CollectionSearch
from kvblend.sdk.langchain.documents import to_document

__all__ = ["KVBlendRetriever"]


class KVBlendRetriever(CollectionSearch, BaseRetriever):
    """Retrieves passages from a collection of a kvblend service, best first.

    Where `base_url` or `api_key` is not given it is that of `KVBLEND_URL` or `KVBLEND_API_KEY`.
    """

    k: int = 8
    """How many passages to retrieve."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        return [to_document(source) for source in self.search(query, top_k=self.k if k is None else k)]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        return [to_document(source) for source in await self.asearch(query, top_k=self.k if k is None else k)]
