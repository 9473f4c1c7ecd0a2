"""A request trace, replayed on a tier's index: how often what is asked for is there."""

from collections.abc import Iterable
from dataclasses import dataclass

from kvblend.eval.trace import Trace
from kvblend.store.eviction import EvictionPolicy, MemoryIndex

__all__ = ["Hits", "ReplayedTier", "passage_bytes"]

BYTES_A_TOKEN = 128 << 10
"""Of an 8B model in bfloat16; another number changes no hit rate."""


@dataclass(frozen=True)
class Hits:
    """What was asked for, and what of it was there."""

    num_asked: int = 0
    num_found: int = 0
    bytes_asked: int = 0
    bytes_found: int = 0

    def __add__(self, other: "Hits") -> "Hits":
        return Hits(
            self.num_asked + other.num_asked,
            self.num_found + other.num_found,
            self.bytes_asked + other.bytes_asked,
            self.bytes_found + other.bytes_found,
        )

    @property
    def hit_rate(self) -> float:
        return self.num_found / self.num_asked

    @property
    def byte_hit_rate(self) -> float:
        return self.bytes_found / self.bytes_asked


class ReplayedTier:
    """An empty tier of `budget_bytes`, of which there is the index alone.

    A passage costs its tokens to compute: at such lengths prefill takes time by them, within a percent.
    """

    def __init__(self, policy: EvictionPolicy, budget_bytes: int) -> None:
        self._index: MemoryIndex[int] = MemoryIndex(policy)
        self._budget_bytes = budget_bytes

    def ask(self, passages: Iterable[int], num_bytes: dict[int, int]) -> Hits:
        """Ask for passages one after the other, and put what is not there, as a service does that computes it then."""
        hits = Hits()
        for passage in passages:
            size, found = num_bytes[passage], self._index.use(passage)
            hits += Hits(1, found, size, size * found)
            if not found:
                self.put(passage, size)
        return hits

    def put(self, passage: int, num_bytes: int) -> None:
        """Put a passage, unless it is larger than the tier."""
        if num_bytes > self._budget_bytes:
            return
        self._index.evict(max(0, self._index.used_bytes + num_bytes - self._budget_bytes))
        self._index.put(passage, num_bytes, cost=num_bytes / BYTES_A_TOKEN)


def passage_bytes(trace: Trace) -> dict[int, int]:
    """The bytes of each passage that a trace asks for: together its working set."""
    return {passage: num_tokens * BYTES_A_TOKEN for passage, num_tokens in trace.passage_tokens.items()}
