"""Which passages a prompt may hold, and where: by grams that it shares with them."""

import threading
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvblend.retriever.matching.gram_table import GramTable
from kvblend.retriever.matching.grams import STRIDE, gram_hashes, strided_grams

__all__ = ["Candidate", "GramIndex"]

MAX_CANDIDATES = 512
"""Of the likeliest. A prompt of 8,192 tokens has room for 256 passages of the least length that counts."""
FANOUT = 32
"""A table is merged with the one before it where that has no more than so many times its grams: there are few then."""


class Candidate(NamedTuple):
    """A passage that may stand in a prompt so that its token 0 would be at `offset`, which may be below 0."""

    passage_id: str
    offset: int


class GramIndex:
    """Grows as passages are added; what is deleted stays until another is made. Safe from several threads."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._known: set[str] = set()
        self._firsts = np.zeros(1, np.int64)
        """Of each passage the number of its first gram, and the number behind the last passage's last."""
        self._tables: tuple[GramTable, ...] = ()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Passages."""
        return len(self._ids)

    @property
    def num_bytes(self) -> int:
        """Of the tables; a passage's name takes about 250 bytes beside them."""
        return self._firsts.nbytes + sum(table.num_bytes for table in self._tables)

    def add(self, passages: Sequence[tuple[str, NDArray[np.int64]]]) -> None:
        """Passage ids with their tokens; those that are there already are left as they are."""
        new = {passage_id: tokens for passage_id, tokens in passages if passage_id not in self._known}
        if not new:
            return
        hashes, counts = strided_grams(list(new.values()))
        with self._lock:
            first = self._firsts[-1]
            numbers = np.arange(first, first + len(hashes)).astype(np.uint32)
            self._firsts = np.concatenate((self._firsts, first + np.cumsum(counts)))
            self._ids.extend(new)
            self._known.update(new)
            if len(hashes):
                self._tables = (*self._tables, GramTable.of(hashes, numbers))

    @property
    def num_tables(self) -> int:
        """Each costs a look-up."""
        return len(self._tables)

    def merge(self, fanout: int = FANOUT) -> bool:
        """Merge two tables, if one is too small to stand alone; whether it did. One thread at a time; others look up
        meanwhile. A smaller `fanout` makes less work of many additions."""
        with self._lock:
            tables = self._tables
        pairs = [place for place, (one, next_) in enumerate(pairwise(tables)) if fanout * len(next_) >= len(one)]
        if not pairs:
            return False
        place = pairs[-1]
        merged = tables[place].merged(tables[place + 1])
        with self._lock:  # others were put behind these at most
            self._tables = (*self._tables[:place], merged, *self._tables[place + 2 :])
        return True

    def candidates(self, token_ids: NDArray[np.int64]) -> list[Candidate]:
        """Whatever shares a gram with the tokens, what shares most of them first."""
        with self._lock:
            tables, firsts = self._tables, self._firsts
        hashes = gram_hashes(token_ids)
        if not len(hashes) or not tables:
            return []
        found = [table.find(hashes) for table in tables]
        places = np.concatenate([own for own, _ in found])
        numbers = np.concatenate([own for _, own in found]).astype(np.int64)
        passages = np.searchsorted(firsts, numbers, side="right") - 1
        offsets = places - (numbers - firsts[passages]) * STRIDE
        both, counts = np.unique(passages << 32 | (offsets + (1 << 31)), return_counts=True)
        likeliest = both[np.argsort(-counts, kind="stable")[:MAX_CANDIDATES]].tolist()
        return [Candidate(self._ids[own >> 32], (own & 0xFFFFFFFF) - (1 << 31)) for own in likeliest]
