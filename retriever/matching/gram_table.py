"""An immutable table from gram hashes to numbers, for thousands of look-ups at a time."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_HOLDERS", "GramTable"]

MAX_HOLDERS = 8
"""Numbers kept of one hash: what more passages share is no mark of any, and all eight have its text."""


@dataclass(frozen=True)
class GramTable:
    """hashes uint64 `[n]`, ascending; numbers uint32 `[n]`; buckets uint32 `[2^bits + 1]`: where the hashes that begin
    with each `bits` bits do. About 16 bytes a gram."""

    hashes: NDArray[np.uint64]
    numbers: NDArray[np.uint32]
    buckets: NDArray[np.uint32]
    bits: int

    @classmethod
    def of(cls, hashes: NDArray[np.uint64], numbers: NDArray[np.uint32]) -> Self:
        """Any hashes, each with its number; of equal hashes the first few are kept."""
        order = np.argsort(hashes, kind="stable")
        hashes, numbers = hashes[order], numbers[order]
        places = np.arange(len(hashes))
        begins = np.ones(len(hashes), bool)
        begins[1:] = hashes[1:] != hashes[:-1]
        rank = places - np.maximum.accumulate(np.where(begins, places, 0))
        hashes, numbers = hashes[rank < MAX_HOLDERS], numbers[rank < MAX_HOLDERS]
        bits = max(1, (len(hashes) - 1).bit_length())
        counts = np.bincount((hashes >> np.uint64(64 - bits)).astype(np.int64), minlength=1 << bits)
        buckets = np.zeros((1 << bits) + 1, np.uint32)
        np.cumsum(counts, out=buckets[1:])
        return cls(hashes, numbers, buckets, bits)

    def merged(self, other: "GramTable") -> "GramTable":
        """Both in one; this one's come first."""
        return GramTable.of(np.concatenate((self.hashes, other.hashes)), np.concatenate((self.numbers, other.numbers)))

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def num_bytes(self) -> int:
        return self.hashes.nbytes + self.numbers.nbytes + self.buckets.nbytes

    def find(self, wanted: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """Pairs of a place in `wanted` and a number kept under its hash."""
        bucket = (wanted >> np.uint64(64 - self.bits)).astype(np.int64)
        starts = self.buckets[bucket].astype(np.int64)
        counts = self.buckets[bucket + 1] - starts
        filled = counts.nonzero()[0]
        starts, counts = starts[filled], counts[filled]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        rows, places = np.repeat(starts, counts) + within, np.repeat(filled, counts)
        equal = self.hashes[rows] == wanted[places]
        return places[equal], self.numbers[rows[equal]]
