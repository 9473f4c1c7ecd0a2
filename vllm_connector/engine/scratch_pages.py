"""Which of a layer's scratch pages are whose."""

from collections.abc import Callable, Sequence

__all__ = ["ScratchPages"]


class ScratchPages:
    """Numbers of scratch pages, from 1 on, allotted to contexts.

    `allocate(num_pages)` makes their memory anew. It is called while no context has any: with 0, then with twice the
    pages that did not fit.
    """

    def __init__(self, allocate: Callable[[int], None]) -> None:
        self._allocate = allocate
        self._free: list[int] = []
        self._num_pages = 0
        allocate(0)

    def reserve(self, count: int) -> list[int] | None:
        """So many pages; None where they must wait until others are free."""
        if count > len(self._free):
            if len(self._free) < self._num_pages:
                return None
            self._allocate(0)  # the old memory goes before the new one comes
            self._free, self._num_pages = [], 0
            self._allocate(2 * count)
            self._free, self._num_pages = list(range(1, 2 * count + 1)), 2 * count
        taken, self._free = self._free[:count], self._free[count:]
        return taken

    def release(self, pages: Sequence[int]) -> None:
        self._free.extend(pages)
