"""A search of one collection as of one moment: by vector, by words, or by both."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kvblend.core.rest import MetadataFilter, SearchMode
from kvblend.retriever.catalog_reading import CollectionReading
from kvblend.retriever.found_passages import EVERYWHERE
from kvblend.retriever.index.snapshot import Snapshot
from kvblend.retriever.records import FoundPassage
from kvblend.retriever.search.matching import Matching
from kvblend.retriever.word_table import find_words

__all__ = ["PassageSearch", "fuse"]

RANK_OFFSET = 60
"""Of reciprocal rank fusion: how little the first places of a ranking stand out (Cormack, Clarke, Büttcher 2009)."""
MIN_FUSED = 50
"""Of each ranking that is fused, so many are looked at, or twice as many as are wanted."""
WIDENED = 4

Scores = list[tuple[int, float]]
"""Rows and scores, best first."""
BestScores = Sequence[tuple[int, float | None]]
"""Likewise; None: the passage has no vector yet."""


@dataclass(frozen=True)
class PassageSearch:
    """Ranks passages, each by its row. `vector` is the query's; None: words alone are asked for."""

    reading: CollectionReading
    snapshot: Snapshot
    query: str
    vector: NDArray[np.float32] | None
    filter: MetadataFilter | None = None
    _matching: Matching | None = field(init=False)

    def __post_init__(self) -> None:
        matching = None if self.filter is None else Matching(self.reading, self.filter)
        object.__setattr__(self, "_matching", matching)

    def best(self, mode: SearchMode, *, top_k: int, min_score: float | None = None) -> BestScores:
        """The best rows by a mode. Scores are cosine similarities, BM25 where `mode` is keyword; those of `hybrid` are
        in the order of the fused ranks and not in their own."""
        if mode == "keyword":
            return _at_least(min_score, self._by_words(top_k))
        if mode == "vector":
            return _at_least(min_score, self._by_vector(top_k))
        number = max(MIN_FUSED, 2 * top_k)
        near, worded = self._by_vector(number), self._by_words(number)
        scores: dict[int, float | None] = dict(near)
        scores |= self._cosines([row for row, _ in worded if row not in scores])

        def counts(row: int) -> bool:
            score = scores.get(row)
            return min_score is None or (score is not None and score >= min_score)

        rankings = [[row for row, _ in ranking if counts(row)] for ranking in (near, worded)]
        return [(row, scores.get(row)) for row in fuse(rankings)[:top_k]]

    def found(self, rows: Sequence[int]) -> list[FoundPassage]:
        """Passages by their rows, in order, each with the first of its documents that the filter lets through."""
        where = EVERYWHERE if self._matching is None else self._matching.sql
        found = self.reading.found_passages(rows, where)
        return [found[row] for row in rows if row in found]

    def _by_vector(self, top_k: int) -> Scores:
        vector = self.vector
        assert vector is not None

        def find(number: int, rows: Iterable[int] | None) -> Scores:
            return self.snapshot.search(vector, top_k=number, allowed=rows)

        return self._matched(find, top_k)

    def _by_words(self, top_k: int) -> Scores:
        def find(number: int, rows: Sequence[int] | None) -> Scores:
            return find_words(self.reading.connection, self.reading.state.key, self.query, top_k=number, rows=rows)

        return self._matched(find, top_k)

    def _matched(self, find: Callable[[int, list[int] | None], Scores], top_k: int) -> Scores:
        """The best that the filter lets through: of few, all are compared; of many, more are found until enough are
        let through."""
        if self._matching is None:
            return find(top_k, None)
        if self._matching.rows is not None:
            return find(top_k, self._matching.rows)
        number = top_k
        while True:
            number *= WIDENED
            found = find(number, None)
            kept = self._matching.among([row for row, _ in found])
            if len(kept) >= top_k:
                return [(row, score) for row, score in found if row in kept][:top_k]
            if len(found) < number:  # the index has looked at all that it would for so many
                return find(top_k, self._matching.list_rows())

    def _cosines(self, rows: Sequence[int]) -> dict[int, float]:
        """Of rows that were found by their words alone."""
        assert self.vector is not None
        return {row: float(vector @ self.vector) for row, vector in self.reading.vectors(rows).items()}


def fuse(rankings: Sequence[Sequence[int]]) -> list[int]:
    """Fuse rankings by reciprocal rank: the sum of 1 / (60 + rank), ranks from 1; equals by row."""
    fused: dict[int, float] = {}
    for ranking in rankings:
        for rank, row in enumerate(ranking, start=1):
            fused[row] = fused.get(row, 0.0) + 1 / (RANK_OFFSET + rank)
    return sorted(fused, key=lambda row: (-fused[row], row))


def _at_least(min_score: float | None, scores: Scores) -> Scores:
    return scores if min_score is None else [(row, score) for row, score in scores if score >= min_score]
