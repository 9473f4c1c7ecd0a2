"""What a process has asked of its tiers, and what came of it."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Literal

__all__ = ["COUNTERS", "OpCounts", "TierCounts", "TierOp"]

TierOp = Literal["lookup", "fetch", "put"]


COUNTERS: Mapping[str, tuple[str, str]] = {
    "num_calls": ("calls", "Calls of a tier of the store, by operation."),
    "num_keys": ("keys", "Passage KV files that a tier was asked for, or given."),
    "num_hits": ("hits", "Of these, those that were there, or came to be there."),
    "num_bytes": ("bytes", "Bytes of files that were opened or written."),
    "num_failures": ("failures", "Calls that failed or were late."),
    "seconds": ("seconds", "Time that calls took."),
}
"""By field of `OpCounts`: the end of a metric's name, and what it says."""


@dataclass
class OpCounts:
    """Counts of one operation of one tier. `num_hits`: of `num_keys`, those that were there, or came to be there.

    `num_bytes`: of files that were opened or written. A remote tier's are moved within `seconds`; a folder's are read
    later, by whoever opened them.
    """

    num_calls: int = 0
    num_keys: int = 0
    num_hits: int = 0
    num_bytes: int = 0
    num_failures: int = 0
    seconds: float = 0.0

    def add(self, other: "OpCounts") -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


class TierCounts:
    """Counts by tier and operation. Safe from several threads."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, TierOp], OpCounts] = {}
        self._lock = threading.Lock()

    @contextmanager
    def of(self, tier: str, op: TierOp, num_keys: int = 1) -> Iterator[OpCounts]:
        """Time the block and count it, with what it says itself of hits and bytes. What raises has failed."""
        own, began = OpCounts(num_calls=1, num_keys=num_keys), time.perf_counter()
        try:
            yield own
        except BaseException:
            own.num_failures += 1
            raise
        finally:
            own.seconds = time.perf_counter() - began
            with self._lock:
                self._counts.setdefault((tier, op), OpCounts()).add(own)

    def take(self) -> Mapping[tuple[str, TierOp], OpCounts]:
        """What was counted since the last call."""
        with self._lock:
            counts, self._counts = self._counts, {}
        return counts
