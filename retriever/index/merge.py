"""Parts of an index made one: which, and how."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from kvblend.retriever.index.clusters import POINTS_A_CLUSTER, Clusters, cluster_vectors, tune_probes
from kvblend.retriever.index.part import Part
from kvblend.retriever.index.snapshot import PartView

__all__ = ["IndexSizes", "Stopped", "choose_merge", "merge_views"]

BATCH = 16384


@dataclass(frozen=True)
class IndexSizes:
    """`tail`: slots of a part that grows. `fan_in` full parts of a size become one of the next, so a vector is
    written log(n / tail) / log(fan_in) times in all. `clustered`: vectors from which on a part has clusters."""

    tail: int = 4096
    fan_in: int = 4
    clustered: int = 12288

    def level(self, count: int) -> int:
        """0 for a full tail, 1 for what `fan_in` of them make, and so on."""
        level, size = 0, self.tail
        while count > size * (self.fan_in + 1) // 2:
            level, size = level + 1, size * self.fan_in
        return level


class Stopped(Exception):
    """The index is being closed: a merge is given up."""


def choose_merge(views: Iterable[PartView], sizes: IndexSizes, *, max_level: int | None) -> list[PartView]:
    """Full parts to merge, the smallest first; a part is merged alone where a third of it is dead. None: []."""
    levels: dict[int, list[PartView]] = {}
    for view in views:
        levels.setdefault(sizes.level(view.count), []).append(view)
    for level in sorted(levels):
        if max_level is not None and level > max_level:
            return []
        if len(levels[level]) >= sizes.fan_in:
            return levels[level]
        for view in levels[level]:
            if 3 * (view.count - view.num_alive) > view.count:
                return [view]
    return []


def merge_views(
    views: Sequence[PartView], path: Path | None, sizes: IndexSizes, stopping: Callable[[], bool]
) -> PartView | None:
    """A full part with all that is alive in the views, in clusters if it is large, synced; None: nothing is alive.

    Raises:
        Stopped: `stopping` said so.
        OSError: the disk has no room.
    """
    sources = np.concatenate([np.full(view.num_alive, number) for number, view in enumerate(views)])
    slots = np.concatenate([_alive_slots(view) for view in views])
    count = len(slots)
    if count == 0:
        return None

    def gather(places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if stopping():
            raise Stopped
        rows = np.empty(len(places), np.int64)
        vectors = np.empty((len(places), views[0].part.dim), np.float32)
        for number, view in enumerate(views):
            here = sources[places] == number
            rows[here] = view.part.rows[slots[places[here]]]
            vectors[here] = view.part.vectors[slots[places[here]]]
        return rows, vectors

    order = np.arange(count)
    offsets = centroids = None
    if count >= sizes.clustered:
        wanted = min(count, int(2 * count**0.5) * POINTS_A_CLUSTER)
        sample = np.sort(np.random.default_rng(0).choice(count, wanted, replace=False))
        centroids = cluster_vectors(gather(sample)[1], num_vectors=count)
        owners = np.empty(count, np.int64)
        for start in range(0, count, BATCH):
            batch = order[start : start + BATCH]
            _, nearest = faiss.knn(gather(batch)[1], centroids, 1, metric=faiss.METRIC_INNER_PRODUCT)
            owners[batch] = nearest[:, 0]
        order = np.argsort(owners, kind="stable")
        offsets = np.searchsorted(owners[order], np.arange(len(centroids) + 1))
    part = Part.create(path, capacity=count, dim=views[0].part.dim)
    for start in range(0, count, BATCH):
        part.put(start, *gather(order[start : start + BATCH]))
    clusters = None
    if centroids is not None and offsets is not None:
        clusters = Clusters(centroids, offsets, tune_probes(part.vectors, centroids, offsets))
        if path is not None:
            clusters.save(path.with_suffix(".clusters"))
    part.flush()
    return PartView(part, count, clusters)


def _alive_slots(view: PartView) -> NDArray[np.int64]:
    return np.arange(view.count) if view.alive is None else np.flatnonzero(view.alive[: view.count])
