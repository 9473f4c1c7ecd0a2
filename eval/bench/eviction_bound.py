"""What a tier could hit that knew all requests to come."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kvblend.eval.bench.eviction_replay import Hits
from kvblend.store.eviction import EvictionPolicy, MemoryIndex, Place, Ranked

__all__ = ["hits_with_foresight"]


@dataclass(frozen=True)
class _Farthest(EvictionPolicy):
    """Evicts what is needed last: a file's `cost` is when it is needed next."""

    name = "foresight"

    def place(self, num_bytes: int, cost: float, *, now: int, floor: float, was_evicted: bool) -> Place:
        return Place(0, -cost)

    def used(self, file: Ranked, *, now: int, floor: float) -> Place:
        raise AssertionError("a file that is used is put again")


def hits_with_foresight(passages: Sequence[int], num_bytes: dict[int, int], budget_bytes: int) -> list[Hits]:
    """What each of the passages, asked for in turn, finds in a tier that evicts what is needed last (Belady).

    That may be what was just computed. For passages of one size no policy hits more; for others hardly any does.
    """
    next_asked = [math.inf] * len(passages)
    last_asked: dict[int, int] = {}
    for at, passage in enumerate(passages):
        if passage in last_asked:
            next_asked[last_asked[passage]] = at
        last_asked[passage] = at
    index: MemoryIndex[int] = MemoryIndex(_Farthest())
    found = []
    for passage, next_at in zip(passages, next_asked, strict=True):
        size, hit = num_bytes[passage], passage in index
        found.append(Hits(1, hit, size, size * hit))
        index.put(passage, size, cost=next_at)
        index.evict(max(0, index.used_bytes - budget_bytes))
    return found
