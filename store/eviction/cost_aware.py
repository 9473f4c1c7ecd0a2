"""What saves the least computing per byte first."""

from dataclasses import dataclass

from kvblend.store.eviction.policy import EvictionPolicy, Place, Ranked

__all__ = ["CostAware"]


@dataclass(frozen=True)
class CostAware(EvictionPolicy):
    """Ranks by the computing that a file's requests, its first one too, would have cost, per byte, and by age.

    GreedyDual-Size-Frequency: Cherkasova, "Improving WWW proxies performance with Greedy-Dual-Size-Frequency caching
    policy" (HP Labs, 1998). The floor, which rises as files go, lets what was used often but long ago go in the end.
    Where a byte costs the same in all files it is the least frequently used one that goes, with that ageing.
    """

    name = "cost-aware"

    def place(self, num_bytes: int, cost: float, *, now: int, floor: float, was_evicted: bool) -> Place:
        return Place(0, floor + cost / num_bytes)

    def used(self, file: Ranked, *, now: int, floor: float) -> Place:
        return Place(0, floor + (1 + file.num_uses) * file.cost / file.num_bytes)
