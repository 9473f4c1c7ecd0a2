"""Texts to unit vectors by a server that speaks OpenAI's `/embeddings`."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import SecretStr

from kvblend.retriever.remote_model import RemoteModel

__all__ = ["RemoteEmbedder"]

BATCH = 64
PROBE = "How many numbers has a vector?"


class RemoteEmbedder:
    """An embedding model behind a URL (`http://host:port/v1`). Its length of vectors is part of its fingerprint, and so
    recorded with each collection: a server that comes to give other vectors is found out.

    Methods raise what `RemoteModel.post` raises.
    """

    def __init__(self, url: str, model: str, *, api_key: SecretStr | None = None) -> None:
        self.name = model
        self._remote = RemoteModel(f"{url.rstrip('/')}/embeddings", what="embedding", api_key=api_key)

    def close(self) -> None:
        self._remote.close()

    @property
    def fingerprint(self) -> str:
        """The model's name and the length of its vectors; asks the server once."""
        return f"{self.name} [{self.dim}]"

    @cached_property
    def dim(self) -> int:
        """Length of the vectors."""
        return int(self._vectors([PROBE]).shape[1])

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed passages; returns unit vectors, [num_texts, dim]."""
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        batches = [self._vectors(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
        for vectors in batches:
            if vectors.shape[1] != self.dim:
                raise self._remote.broken(f"vectors of {vectors.shape[1]} numbers, after some of {self.dim}")
        return np.concatenate(batches)

    def encode_query(self, query: str) -> NDArray[np.float32]:
        """Embed a query; returns a unit vector, [dim]."""
        vector: NDArray[np.float32] = self.encode([query])[0]
        return vector

    def _vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        answer: Any = self._remote.post({"model": self.name, "input": list(texts), "encoding_format": "float"})
        try:
            by_index = {int(item["index"]): item["embedding"] for item in answer["data"]}
            vectors = np.asarray([by_index[index] for index in range(len(texts))], dtype=np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise self._remote.broken(f"no vector for each of {len(texts)} texts") from error
        if vectors.ndim != 2 or not vectors.shape[1] or not np.isfinite(vectors).all():
            raise self._remote.broken("vectors that are none")
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: NDArray[np.float32] = vectors / np.maximum(norms, 1e-12)
        return unit
