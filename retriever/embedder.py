"""Texts to unit vectors by a sentence-transformers model."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Embedder", "EmbeddingModel"]

WINDOW_MARGIN = 4  # tokens that a cut-out window may gain when it is tokenized by itself


class EmbeddingModel(Protocol):
    """What the retriever needs of an embedding model; called from many threads at once."""

    @property
    def fingerprint(self) -> str:
        """Names the model: vectors of two models with different fingerprints are not compared."""
        ...

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed passages; returns unit vectors, [num_texts, dim]."""
        ...

    def encode_query(self, query: str) -> NDArray[np.float32]:
        """Embed a query; returns a unit vector, [dim]."""
        ...


class Embedder:
    """A sentence-transformers model, loaded once, at first use.

    A text longer than the model takes is embedded in windows, whose mean, weighted by their tokens,
    stands for the text. Queries and passages are embedded at the same time: only tokenizing, which
    changes the tokenizer's state, is done one batch after another.
    """

    def __init__(self, model: str | Path, *, batch_size: int = 16, device: str | None = None) -> None:
        """Take a model's folder, or its name on the Hugging Face hub; `device` None lets torch choose."""
        self.name = str(model)
        self._batch_size = batch_size
        self._device = device
        self._model: SentenceTransformer | None = None
        self._fingerprint: str | None = None
        self._load_lock = Lock()
        self._tokenize_lock = Lock()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the model's weights: the same wherever its folder lies."""
        self._load()
        assert self._fingerprint is not None
        return self._fingerprint

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        dim = self._load().get_embedding_dimension()
        assert dim is not None
        return int(dim)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed passages; returns unit vectors, [num_texts, dim]."""
        return self._encode(texts, prompt=self._load().prompts.get("document") or "")

    def encode_query(self, query: str) -> NDArray[np.float32]:
        """Embed a query, behind the model's own query prompt if it has one; returns a unit vector, [dim]."""
        vector: NDArray[np.float32] = self._encode([query], prompt=self._load().prompts.get("query") or "")[0]
        return vector

    def _load(self) -> "SentenceTransformer":
        with self._load_lock:
            if self._model is None:
                from sentence_transformers import SentenceTransformer  # takes seconds to import

                model = SentenceTransformer(self.name, device=self._device)
                model.eval()
                digest = hashlib.sha256()
                for name, weights in model.state_dict().items():
                    digest.update(f"{name} {weights.dtype} {tuple(weights.shape)}".encode())
                    digest.update(weights.detach().cpu().contiguous().flatten().view(_uint8()).numpy())
                self._fingerprint = digest.hexdigest()
                self._model = model
            return self._model

    def _encode(self, texts: Sequence[str], *, prompt: str) -> NDArray[np.float32]:
        windows: list[tuple[int, str, int]] = []  # text's number, the window's text, its tokens
        for number, text in enumerate(texts):
            windows.extend((number, prompt + window, weight) for window, weight in self._windows(text, prompt))
        sums = np.zeros((len(texts), self.dim), dtype=np.float32)
        windows.sort(key=lambda window: window[2], reverse=True)  # equal lengths together: less padding
        for start in range(0, len(windows), self._batch_size):
            batch = windows[start : start + self._batch_size]
            vectors = self._forward([text for _, text, _ in batch])
            for (number, _, weight), vector in zip(batch, vectors, strict=True):
                sums[number] += vector * weight
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        result: NDArray[np.float32] = sums / np.maximum(norms, 1e-12)
        return result

    def _windows(self, text: str, prompt: str) -> list[tuple[str, int]]:
        """The text in parts that the model takes whole, each with its number of tokens."""
        model = self._load()
        tokenizer: Any = model.tokenizer
        if model.max_seq_length is None or not getattr(tokenizer, "is_fast", False):
            return [(text, 1)]
        with self._tokenize_lock:
            encoding = tokenizer(
                text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
            )
            prompt_tokens = len(tokenizer(prompt).input_ids)  # the special tokens among them
        offsets: list[tuple[int, int]] = encoding["offset_mapping"]
        size = max(1, model.max_seq_length - prompt_tokens)
        if len(offsets) <= size:
            return [(text, max(1, len(offsets)))]
        size = max(1, size - WINDOW_MARGIN)
        parts = [offsets[start : start + size] for start in range(0, len(offsets), size)]
        return [(text[part[0][0] : part[-1][1]], len(part)) for part in parts]

    def _forward(self, texts: list[str]) -> NDArray[np.float32]:
        """Run the model on one batch; returns unit vectors, [num_texts, dim]."""
        import torch
        from torch.nn.functional import normalize

        model = self._load()
        with self._tokenize_lock:
            features = model.preprocess(texts)
        device = model.device
        features = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in features.items()}
        with torch.inference_mode():
            vectors = normalize(model(features)["sentence_embedding"].float(), dim=1)
        result: NDArray[np.float32] = vectors.cpu().numpy()
        return result


def _uint8() -> Any:
    import torch

    return torch.uint8
