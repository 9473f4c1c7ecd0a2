"""The models that retrieval is made by, as the settings name them."""

from pathlib import Path

from kvblend.core.errors import InvalidRequestError
from kvblend.core.settings import Settings
from kvblend.retriever import CrossEncoderReranker, Embedder, RemoteEmbedder, RemoteReranker

__all__ = ["open_embedder", "open_reranker"]


def open_embedder(model: str | Path, settings: Settings) -> Embedder | RemoteEmbedder:
    """The embedding model: a server's, where the settings name one, or else `model`, a folder or name.

    Raises InvalidRequestError where a server is named and no model of it.
    """
    if settings.embedding_url is None:
        return Embedder(model)
    if settings.embedding_model is None:
        raise InvalidRequestError(
            f"KVBLEND_EMBEDDING_URL is {settings.embedding_url!r}; KVBLEND_EMBEDDING_MODEL must name its model"
        )
    return RemoteEmbedder(settings.embedding_url, settings.embedding_model, api_key=settings.embedding_api_key)


def open_reranker(settings: Settings) -> CrossEncoderReranker | RemoteReranker | None:
    """The reranker; None where the settings name none."""
    if settings.reranker is None:
        return None
    if settings.reranker.startswith(("http://", "https://")):
        return RemoteReranker(settings.reranker, settings.reranker_model, api_key=settings.reranker_api_key)
    return CrossEncoderReranker(settings.reranker)
