"""Whether passage KV is loaded or computed anew: by what both have taken of late."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["LoadingController"]

WEIGHT = 0.3
"""Of the newest measurement in a mean."""
MIN_LOADS = 3
MARGIN = 1.25
"""By which a load must be the slower one: a computed token takes the engine's time from other requests, a loaded one
does not."""
RETRY_S = 30.0
"""One blend in so long loads from a tier that was too slow: it may have become faster."""
MOSTLY = 0.8


@dataclass
class _Mean:
    """Seconds a token, the newest weighing most."""

    value: float = 0.0
    count: int = 0

    def add(self, seconds: float) -> None:
        self.value = seconds if not self.count else (1 - WEIGHT) * self.value + WEIGHT * seconds
        self.count += 1


class LoadingController:
    """Means of seconds a token, by tier and of repairs. Safe from several threads.

    Each rank has its own; ranks agree afterwards on what all of them have (`Blend.settle`).
    """

    def __init__(self) -> None:
        self._loads: dict[str, _Mean] = {}
        self._repair = _Mean()
        self._retry_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def loaded(self, num_tokens: Mapping[str, int], seconds: float) -> None:
        """Take note of a blend's load: tokens by tier, of which one must have had the most by far to tell anything."""
        total = sum(num_tokens.values())
        if not total:
            return
        tier, count = max(num_tokens.items(), key=lambda own: own[1])
        if count >= MOSTLY * total:
            with self._lock:
                self._loads.setdefault(tier, _Mean()).add(seconds / total)

    def repaired(self, num_tokens: int, seconds: float) -> None:
        """Take note of a blend's repair. Where several shared a pass each is charged all of it: repairs look slower
        then than they are, and nothing is computed for that."""
        if num_tokens:
            with self._lock:
                self._repair.add(seconds / num_tokens)

    def too_slow(self) -> set[str]:
        """Tiers from which a token takes longer to load than to compute."""
        now = time.monotonic()
        slow = set()
        with self._lock:
            for tier, load in self._loads.items():
                if not self._repair.count or load.count < MIN_LOADS or load.value <= MARGIN * self._repair.value:
                    self._retry_at.pop(tier, None)
                elif now >= self._retry_at.setdefault(tier, now + RETRY_S):
                    self._retry_at[tier] = now + RETRY_S
                else:
                    slow.add(tier)
        return slow
