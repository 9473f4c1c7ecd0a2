"""The clusters of a large part: which slots to look at for a query."""

import io
import math
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import xxhash
from numpy.typing import NDArray

__all__ = ["Clusters", "cluster_vectors", "tune_probes"]

POINTS_A_CLUSTER = 32
ITERATIONS = 6
SAMPLED_QUERIES = 192
NEIGHBOURS = 10
RECALL = 0.99
MARGIN = 1.25
"""Over what the part's own vectors need as queries: questions lie farther from passages than passages do."""
DIGEST_BYTES = 8


@dataclass(frozen=True)
class Clusters:
    """Slots `offsets[n]` to `offsets[n + 1]` are nearest to `centroids[n]` (unit vectors); `probes` are looked at."""

    centroids: NDArray[np.float32]
    offsets: NDArray[np.int64]
    probes: int

    def save(self, path: Path) -> None:
        """Write to a file that no part names yet."""
        packed = io.BytesIO()
        np.savez(packed, centroids=self.centroids, offsets=self.offsets, probes=np.int64(self.probes))
        data = packed.getvalue()
        path.write_bytes(xxhash.xxh3_64_digest(data) + data)

    @classmethod
    def load(cls, path: Path) -> "Clusters | None":
        """None where the file is missing or torn: its part is then searched whole."""
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        if xxhash.xxh3_64_digest(data[DIGEST_BYTES:]) != data[:DIGEST_BYTES]:
            return None
        with np.load(io.BytesIO(data[DIGEST_BYTES:]), allow_pickle=False) as arrays:
            return cls(arrays["centroids"], arrays["offsets"], int(arrays["probes"]))

    def slices(self, query: NDArray[np.float32], *, share: float) -> list[tuple[int, int]]:
        """Slots from and to, of the clusters to look at where only a `share` (0 to 1) of the slots is wanted."""
        wanted = math.ceil(self.probes / share)
        if wanted >= len(self.centroids):
            return [(0, int(self.offsets[-1]))]
        nearest = np.sort(np.argpartition(self.centroids @ query, -wanted)[-wanted:])
        return [(int(self.offsets[each]), int(self.offsets[each + 1])) for each in nearest]


def cluster_vectors(sample: NDArray[np.float32], *, num_vectors: int) -> NDArray[np.float32]:
    """Centroids for a part of so many vectors, 2 sqrt(n) of them, from a sample of its vectors."""
    number = max(1, min(len(sample), int(2 * math.sqrt(num_vectors))))
    means = faiss.Kmeans(
        sample.shape[1],
        number,
        niter=ITERATIONS,
        spherical=True,
        seed=1,
        min_points_per_centroid=1,
        max_points_per_centroid=POINTS_A_CLUSTER,
    )
    means.train(sample)
    centroids: NDArray[np.float32] = np.asarray(means.centroids, dtype=np.float32)
    return centroids


def tune_probes(vectors: NDArray[np.float32], centroids: NDArray[np.float32], offsets: NDArray[np.int64]) -> int:
    """How many clusters to look at: where the true neighbours of a sample of the vectors themselves are found."""
    count = len(vectors)
    chosen = np.random.default_rng(0).integers(count, size=min(SAMPLED_QUERIES, count))
    queries = vectors[chosen]
    _, neighbours = faiss.knn(queries, vectors, min(NEIGHBOURS + 1, count), metric=faiss.METRIC_INNER_PRODUCT)
    owners = np.searchsorted(offsets, neighbours[:, 1:], side="right") - 1
    ranks = np.argsort(np.argsort(-(queries @ centroids.T), axis=1), axis=1)
    if owners.size == 0:
        return 1
    needed = np.quantile(np.take_along_axis(ranks, owners, axis=1), RECALL)
    return min(len(centroids), math.ceil(MARGIN * (float(needed) + 1)))
