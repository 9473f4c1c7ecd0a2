"""Scores of how well texts answer a query, by a cross-encoder that reads both together: here or on a server."""

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import SecretStr

from kvblend.retriever.remote_model import RemoteModel

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

__all__ = ["CrossEncoderReranker", "RemoteReranker", "Reranker"]

BATCH = 16


class Reranker(Protocol):
    """What the retriever needs of a reranker; called from many threads at once."""

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """Of each text, in order; more is better."""
        ...


class CrossEncoderReranker:
    """A sentence-transformers CrossEncoder, loaded once, at first use."""

    def __init__(self, model: str | Path) -> None:
        """Take a model's folder, or its name on the Hugging Face hub."""
        self.name = str(model)
        self._model: CrossEncoder | None = None
        self._lock = Lock()

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """Of each text, in order, as the model's own activation gives it."""
        if not texts:
            return []
        with self._lock:  # the tokenizer has state, and a model takes all cores by itself
            if self._model is None:
                from sentence_transformers import CrossEncoder  # takes seconds to import

                self._model = CrossEncoder(self.name)
            scores: Any = self._model.predict(
                [(query, text) for text in texts], batch_size=BATCH, show_progress_bar=False
            )
        return [float(score) for score in scores]


class RemoteReranker:
    """A server that speaks `/rerank` as Jina, Cohere and vLLM do. Raises what `RemoteModel.post` raises."""

    def __init__(self, url: str, model: str | None = None, *, api_key: SecretStr | None = None) -> None:
        """Take the whole URL, `/rerank` included."""
        self._model = model
        self._remote = RemoteModel(url, what="rerank", api_key=api_key)

    def close(self) -> None:
        self._remote.close()

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """Of each text, in order: the server's `relevance_score`."""
        if not texts:
            return []
        named = {} if self._model is None else {"model": self._model}
        answer: Any = self._remote.post({**named, "query": query, "documents": list(texts), "top_n": len(texts)})
        try:
            by_index = {int(item["index"]): float(item["relevance_score"]) for item in answer["results"]}
            return [by_index[index] for index in range(len(texts))]
        except (KeyError, TypeError, ValueError) as error:
            raise self._remote.broken(f"no score for each of {len(texts)} texts") from error
