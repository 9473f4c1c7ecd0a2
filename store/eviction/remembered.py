"""The names of files that were evicted not long ago."""

from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["Remembered"]

Key = TypeVar("Key", bound=Hashable)


class Remembered(Generic[Key]):
    """Counts evictions, and remembers each file until so many more have followed as there were files left.

    It holds no more keys than the tier held files when it had most; a call takes constant time, amortised.
    """

    def __init__(self) -> None:
        self._num_evicted = 0
        self._until: dict[Key, int] = {}  # the number of evictions at which each is forgotten; the oldest first

    def evicted(self, key: Key, *, num_left: int) -> None:
        """Count an eviction that left `num_left` files, and remember its file."""
        self._num_evicted += 1
        self._until[key] = self._num_evicted + num_left
        while self._until and self._until[oldest := next(iter(self._until))] <= self._num_evicted:
            del self._until[oldest]

    def forget(self, key: Key) -> bool:
        """Forget a file; whether it was remembered."""
        return self._until.pop(key, -1) > self._num_evicted

    def __len__(self) -> int:
        return len(self._until)
