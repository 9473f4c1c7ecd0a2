"""An index of a tier's files in this process's memory, which applies an eviction policy."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from sortedcontainers import SortedList

from kvblend.core.errors import StoreFullError
from kvblend.store.eviction.policy import EvictionPolicy, Ranked
from kvblend.store.eviction.remembered import Remembered

__all__ = ["MemoryIndex"]

Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True)
class _File:
    ranked: Ranked
    placed_at: int
    is_pinned: bool = False


class MemoryIndex(Generic[Key]):
    """Ranks files by a policy, with the semantics of `EvictionPolicy`; each call takes O(log n) time, or that a victim.

    It has no budget: its owner asks for room. Not safe from several threads at once.
    """

    def __init__(self, policy: EvictionPolicy) -> None:
        self._policy = policy
        self._files: dict[Key, _File] = {}
        self._queues: list[SortedList] = [SortedList() for _ in range(policy.num_queues)]  # candidates' _order
        self._queue_bytes = [0] * policy.num_queues  # of candidates
        self._used_bytes, self._now, self._floor = 0, 0, 0.0
        self._remembered: Remembered[Key] = Remembered()

    @property
    def used_bytes(self) -> int:
        return self._used_bytes

    @property
    def free_bytes(self) -> int:
        """Bytes that could be evicted: those of files that are not pinned."""
        return sum(self._queue_bytes)

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, key: object) -> bool:
        return key in self._files

    def put(self, key: Key, num_bytes: int, cost: float) -> None:
        """Take a file of at least one byte up, as new and not pinned, whether or not one was there under its key."""
        assert num_bytes > 0
        self.remove(key)
        now, was_evicted = self._tick(), self._remembered.forget(key)
        place = self._policy.place(num_bytes, cost, now=now, floor=self._floor, was_evicted=was_evicted)
        self._files[key] = _File(Ranked(num_bytes, cost, 0, place), now)
        self._used_bytes += num_bytes
        self._list(key)

    def use(self, key: Key) -> bool:
        """Note that a file was used now; False where there is none."""
        file = self._files.get(key)
        if file is None:
            return False
        ranked, now = file.ranked, self._tick()
        used = Ranked(ranked.num_bytes, ranked.cost, ranked.num_uses + 1, ranked.place)
        place = self._policy.used(used, now=now, floor=self._floor)
        self._replace(key, Ranked(used.num_bytes, used.cost, used.num_uses, place), now)
        return True

    def pin(self, key: Key, *, pinned: bool) -> bool:
        """Keep a file from eviction, or no longer, be it for a user or while it is open; False where there is none."""
        file = self._files.get(key)
        if file is None:
            return False
        self._unlist(key)
        file.is_pinned = pinned
        self._list(key)
        return True

    def remove(self, key: Key, *, evicted: bool = False) -> bool:
        """Drop a file, pinned or not; False where there is none.

        `evicted`: it goes as a victim, so that the floor rises and it is remembered where the policy asks for that.
        """
        file = self._files.get(key)
        if file is None:
            return False
        self._unlist(key)
        del self._files[key]
        self._used_bytes -= file.ranked.num_bytes
        if evicted:
            self._floor = max(self._floor, file.ranked.place.rank)
            if self._policy.remembers:
                self._remembered.evicted(key, num_left=len(self._files))
        return True

    def evict(self, num_bytes: int) -> list[Key]:
        """Choose victims as `victims` does, and drop them."""
        chosen = self.victims(num_bytes)
        for key in chosen:
            self.remove(key, evicted=True)
        return chosen

    def victims(self, num_bytes: int) -> list[Key]:
        """The next files to go, until they have `num_bytes`; none is dropped.

        As `in_order`, it moves what the policy spares: asked again it may name others. Raises StoreFullError where all
        that are not pinned have fewer; then nothing changed.
        """
        if self.free_bytes < num_bytes:
            raise StoreFullError(f"only {self.free_bytes} bytes are neither pinned nor in use, not {num_bytes}")
        chosen: list[Key] = []
        freed, candidates = 0, self.in_order()
        while freed < num_bytes:
            chosen.append(next(candidates))
            freed += self._files[chosen[-1]].ranked.num_bytes
        return chosen

    def in_order(self) -> Iterator[Key]:
        """All files that may go, the first to go first, for who must choose among them by more than bytes.

        It goes as if each had gone before the next. What the policy spares on the way is moved for good; what is
        yielded stays where it is until it is removed, which must not be before the iteration ends.
        """
        num_passed, left = [0] * len(self._queues), list(self._queue_bytes)
        while any(left):
            queue = self._policy.next_queue(left)
            _, _, key = self._queues[queue][num_passed[queue]]
            file = self._files[key].ranked
            left[queue] -= file.num_bytes
            now = self._tick()
            spared = self._policy.spared(file, now=now)
            if spared is None:
                num_passed[queue] += 1
                yield key
            else:
                left[spared.place.queue] += file.num_bytes
                self._replace(key, spared, now)

    def _tick(self) -> int:
        self._now += 1
        return self._now

    def _replace(self, key: Key, ranked: Ranked, now: int) -> None:
        self._unlist(key)
        file = self._files[key]
        file.ranked, file.placed_at = ranked, now
        self._list(key)

    def _list(self, key: Key) -> None:
        file = self._files[key]
        if not file.is_pinned:
            self._queues[file.ranked.place.queue].add(_order(key, file))
            self._queue_bytes[file.ranked.place.queue] += file.ranked.num_bytes

    def _unlist(self, key: Key) -> None:
        file = self._files[key]
        if not file.is_pinned:
            self._queues[file.ranked.place.queue].remove(_order(key, file))
            self._queue_bytes[file.ranked.place.queue] -= file.ranked.num_bytes


def _order(key: Key, file: _File) -> tuple[float, int, Key]:
    """What files of a queue are sorted by; no two have the same `placed_at`, so that keys are not compared."""
    return (file.ranked.place.rank, file.placed_at, key)
