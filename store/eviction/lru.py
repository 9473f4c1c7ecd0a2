"""Least recently used first."""

from dataclasses import dataclass

from kvblend.store.eviction.policy import EvictionPolicy, Place, Ranked

__all__ = ["LRU"]


@dataclass(frozen=True)
class LRU(EvictionPolicy):
    """Ranks by last use alone. A scan, such as an ingest that does not fit, drives out all that is asked for."""

    name = "lru"

    def place(self, num_bytes: int, cost: float, *, now: int, floor: float, was_evicted: bool) -> Place:
        return Place(0, now)

    def used(self, file: Ranked, *, now: int, floor: float) -> Place:
        return Place(0, now)
