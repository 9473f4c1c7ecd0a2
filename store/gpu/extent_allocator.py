"""Which parts of an arena are taken."""

from bisect import bisect_left, insort
from collections.abc import Iterable
from typing import Self

from kvblend.store.format import aligned

__all__ = ["ExtentAllocator"]


class ExtentAllocator:
    """Hands out byte ranges of `[0, num_bytes)`, each a whole number of 4 KiB and none overlapping.

    What is given back joins the free ranges beside it, so that everything free side by side is one hole. The
    smallest hole that fits is cut, which leaves large ones to large passages. Not safe from several threads.
    """

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._holes: list[tuple[int, int]] = [(0, num_bytes)] if num_bytes else []  # (start, end), ascending, apart
        self._taken: dict[int, int] = {}  # start to end

    @property
    def used_bytes(self) -> int:
        return sum(end - start for start, end in self._taken.items())

    def allocate(self, num_bytes: int) -> int | None:
        """Take a range and return where it starts; None where no hole is large enough."""
        size = aligned(num_bytes)
        fitting = [(end - start, start, end) for start, end in self._holes if end - start >= size]
        if not fitting or size == 0:
            return None
        _, start, end = min(fitting)
        index = bisect_left(self._holes, (start, end))
        self._holes[index : index + 1] = [(start + size, end)] if start + size < end else []
        self._taken[start] = start + size
        return start

    def free(self, start: int) -> None:
        """Give back the range that starts there. KeyError where none does."""
        end = self._taken.pop(start)
        insort(self._holes, (start, end))
        index = bisect_left(self._holes, (start, end))
        first = index - 1 if index > 0 and self._holes[index - 1][1] == start else index
        last = index + 1 if index + 1 < len(self._holes) and self._holes[index + 1][0] == end else index
        self._holes[first : last + 1] = [(self._holes[first][0], self._holes[last][1])]

    def fits(self, num_bytes: int) -> bool:
        """Whether some hole is large enough."""
        return any(end - start >= aligned(num_bytes) for start, end in self._holes)

    def without(self, starts: Iterable[int]) -> Self:
        """A copy in which the ranges that start there were given back."""
        copy = type(self)(self.num_bytes)
        copy._holes, copy._taken = self._holes.copy(), self._taken.copy()
        for start in starts:
            copy.free(start)
        return copy

    def check_integrity(self) -> None:
        """Raise AssertionError unless holes and taken ranges tile the arena and no two holes touch."""
        ranges = sorted([(start, end, True) for start, end in self._holes] + [(*r, False) for r in self._taken.items()])
        place, was_hole = 0, False
        for start, end, is_hole in ranges:
            assert start == place < end, f"[{start}, {end}) after {place}"
            assert not (is_hole and was_hole), f"two holes meet at {start}"
            place, was_hole = end, is_hole
        assert place == self.num_bytes, f"{place} of {self.num_bytes} bytes are accounted for"
