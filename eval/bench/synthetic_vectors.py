"""Made-up embeddings: as many as wanted, the same each time, a block at a time."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCK", "SyntheticVectors"]

BLOCK = 1000
"""Vectors that are drawn together."""
LATENT = 48
"""Dimensions that the vectors really spread in: far fewer than they have, as with embeddings of text."""
NUM_TOPICS = 2000
SPREAD, NOISE, QUERY_NOISE = 0.6, 0.04, 0.06
FIRST_QUERY_BLOCK = 1 << 32


class SyntheticVectors:
    """Unit vectors around topics, in a subspace of 48 dimensions, with some noise in all; queries have more of it."""

    def __init__(self, dim: int) -> None:
        random = np.random.default_rng(0)
        self.dim = dim
        self._topics = random.standard_normal((NUM_TOPICS, LATENT)).astype(np.float32)
        self._projection = random.standard_normal((LATENT, dim)).astype(np.float32) / np.float32(LATENT**0.5)

    def passages(self, block: int) -> NDArray[np.float32]:
        """The `BLOCK` vectors of a block."""
        return self._draw(block, BLOCK, NOISE)

    def queries(self, count: int) -> NDArray[np.float32]:
        return self._draw(FIRST_QUERY_BLOCK, count, QUERY_NOISE)

    def _draw(self, seed: int, count: int, noise: float) -> NDArray[np.float32]:
        random = np.random.default_rng([1, seed])
        latent = self._topics[random.integers(NUM_TOPICS, size=count)]
        latent = latent + np.float32(SPREAD) * random.standard_normal((count, LATENT), dtype=np.float32)
        vectors = latent @ self._projection + np.float32(noise) * random.standard_normal((count, self.dim), np.float32)
        unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit
