"""What a search sees of an index: one moment's parts, whatever is written meanwhile."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kvblend.retriever.index.clusters import Clusters
from kvblend.retriever.index.part import Part

__all__ = ["PartView", "Snapshot"]

MAX_EXACT = 16384
"""So many allowed rows are compared one by one; more go through the clusters."""

Found = tuple[NDArray[np.int64], NDArray[np.float32]]


@dataclass(frozen=True)
class PartView:
    """The first `count` slots of a part but those that are not `alive`; None: all are."""

    part: Part
    count: int
    clusters: Clusters | None = None
    alive: NDArray[np.bool_] | None = None

    @property
    def is_full(self) -> bool:
        return self.count == self.part.capacity

    @property
    def num_alive(self) -> int:
        return self.count if self.alive is None else int(np.count_nonzero(self.alive[: self.count]))

    def rows(self) -> NDArray[np.int64]:
        """Those alive, in the slots' order."""
        rows = self.part.rows[: self.count]
        return rows.copy() if self.alive is None else rows[self.alive[: self.count]]

    def slots_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Slots alive of those of `rows` (sorted) that are here."""
        slots = self.part.slots_of(rows, self.count)
        return slots if self.alive is None else slots[self.alive[slots]]

    def without(self, slots: NDArray[np.int64]) -> "PartView":
        """The same with these slots dead, too."""
        alive = np.ones(self.part.capacity, dtype=bool) if self.alive is None else self.alive.copy()
        alive[slots] = False
        return replace(self, alive=alive)

    def search(self, query: NDArray[np.float32], top_k: int, allowed: NDArray[np.int64] | None) -> Found:
        """Rows and scores of at least the `top_k` best, in any order."""
        mask = self.alive
        share = 1.0
        if allowed is not None:
            slots = self.slots_of(allowed)
            if len(slots) <= MAX_EXACT:
                return _best(self.part.rows[slots], self.part.vectors[slots] @ query, top_k)
            mask = np.zeros(self.part.capacity, dtype=bool)
            mask[slots] = True
            share = len(slots) / self.count
        slices = [(0, self.count)] if self.clusters is None else self.clusters.slices(query, share=share)
        scores = np.concatenate([self.part.vectors[start:stop] @ query for start, stop in slices])
        slots = np.concatenate([np.arange(start, stop) for start, stop in slices])
        if mask is not None:
            kept = mask[slots]
            scores, slots = scores[kept], slots[kept]
        slots, scores = _best(slots, scores, top_k)
        return self.part.rows[slots], scores


@dataclass(frozen=True)
class Snapshot:
    """An index at one version of its collection (None: of no version yet)."""

    version: bytes | None
    views: tuple[PartView, ...] = ()

    def rows(self) -> NDArray[np.int64]:
        """All rows that it holds, in no order."""
        return np.concatenate([np.zeros(0, np.int64), *(view.rows() for view in self.views)])

    def search(
        self, query: NDArray[np.float32], *, top_k: int, allowed: Iterable[int] | None = None
    ) -> list[tuple[int, float]]:
        """The rows nearest to a unit vector and their cosine similarities, best first; equals by row.

        `allowed`: no row but these. Of at most `MAX_EXACT` allowed rows the answer is exact, as it is of an index that
        is too small for clusters; else it is as good as `Clusters.probes` was tuned to be.
        """
        chosen = None if allowed is None else np.unique(np.fromiter(allowed, np.int64))
        parts = [view.search(query, top_k, chosen) for view in self.views if view.count]
        if not parts:
            return []
        rows, scores = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
        order = np.lexsort((rows, -scores))[:top_k]
        return list(zip(rows[order].tolist(), scores[order].tolist(), strict=True))


def _best(names: NDArray[np.int64], scores: NDArray[np.float32], top_k: int) -> Found:
    """Those that score best, and all that score the same as the last of them."""
    if len(scores) <= top_k:
        return names, scores
    least = np.partition(scores, -top_k)[-top_k]
    kept = scores >= least
    return names[kept], scores[kept]
