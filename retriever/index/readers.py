"""Who is reading, and since when."""

from collections import Counter
from threading import Lock

__all__ = ["Readers"]


class Readers:
    """Counts readers by the epoch that they came in. Its lock is never held for longer than a count takes."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._epoch = 0
        self._counts: Counter[int] = Counter()

    def enter(self) -> int:
        with self._lock:
            self._counts[self._epoch] += 1
            return self._epoch

    def leave(self, epoch: int) -> None:
        with self._lock:
            self._counts[epoch] -= 1
            if not self._counts[epoch]:
                del self._counts[epoch]

    def next_epoch(self) -> int:
        """Begin an epoch: whoever comes in from now on has this one or a later one."""
        with self._lock:
            self._epoch += 1
            return self._epoch

    def oldest(self) -> int | None:
        """The first epoch that someone is still reading in; None where nobody is reading."""
        with self._lock:
            return min(self._counts, default=None)
