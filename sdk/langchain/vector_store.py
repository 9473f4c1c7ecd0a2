"""A collection as LangChain's vector store: the service embeds, splits and keeps the KV."""

import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Self

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from pydantic import SecretStr

from kvblend.core.errors import ConflictError, NotFoundError
from kvblend.core.rest import Source
from kvblend.sdk import Client
from kvblend.sdk.frameworks.environment import api_key_of_environment, url_of_environment

__all__ = ["KVBlendVectorStore"]

JOBS_AT_A_TIME = 64


class KVBlendVectorStore(VectorStore):
    """Documents in a collection of a kvblend service, which is made where it is not there.

    A document that is longer than the collection's passages is found by its passages, each with the document's id and
    metadata. Where `base_url` or `api_key` is not given it is that of `KVBLEND_URL` or `KVBLEND_API_KEY`. Errors are
    those of `kvblend.sdk.Client`.
    """

    def __init__(
        self,
        collection: str,
        *,
        base_url: str | None = None,
        api_key: SecretStr | str | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        key = api_key or api_key_of_environment()
        secret = key.get_secret_value() if isinstance(key, SecretStr) else key
        self.collection = collection
        self._client = Client(base_url or url_of_environment(), api_key=secret, timeout_s=timeout_s)
        with suppress(ConflictError):
            self._client.create_collection(collection)

    @property
    def embeddings(self) -> Embeddings | None:
        """None: the service embeds."""
        return None

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Ingest texts, wait until they are found and encoded, and return their ids. A text whose id is there already
        takes the place of the old one.

        Metadata's values are texts, numbers and booleans, which filters compare.

        Raises:
            InvalidRequestError: some metadata holds anything else: None, a list, a dict or a date.
        """
        texts = list(texts)
        metadatas = metadatas or [{}] * len(texts)
        named = [id or uuid.uuid4().hex for id in ids or [""] * len(texts)]  # LangChain gives None among ids, too
        documents = list(zip(texts, metadatas, named, strict=True))
        for start in range(0, len(documents), JOBS_AT_A_TIME):
            jobs = [
                self._client.add_document(self.collection, text, id=id, metadata=metadata)
                for text, metadata, id in documents[start : start + JOBS_AT_A_TIME]
            ]
            for job in jobs:
                self._client.wait(job)
        return named

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool | None:
        """Delete documents with their vectors and passage KV; None: all. What is not there is passed over."""
        if ids is None:
            ids = [document.id for document in self._client.list_documents(self.collection)]
        for id in ids:
            with suppress(NotFoundError):
                self._client.delete_document(self.collection, id)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents of these ids that there are, as they were added."""
        found = []
        for id in ids:
            with suppress(NotFoundError):
                document = self._client.get_document(self.collection, id)
                text = self._client.document_source(self.collection, id).decode()
                found.append(Document(id=id, page_content=text, metadata=dict(document.metadata)))
        return found

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """Return the passages that answer a query best, best first; `kwargs` as of `Client.search`: `mode`, `filter`,
        `min_score`, `neighbors`, `rerank`."""
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    def similarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> list[tuple[Document, float]]:
        """As `similarity_search`, each with the score of the mode that searched."""
        sources = self._client.search(self.collection, query, top_k=k, **kwargs)
        return [(_document(source), source.score or 0.0) for source in sources]

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return lambda score: min(max(score, 0.0), 1.0)

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        collection: str = "langchain",
        **kwargs: Any,
    ) -> Self:
        """Make a store of texts; `kwargs` as of the class. `embedding` is not used: the service embeds."""
        store = cls(collection, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store


def _document(source: Source) -> Document:
    return Document(id=source.document_id, page_content=source.text, metadata=dict(source.metadata))
