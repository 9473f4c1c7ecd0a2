"""How long calls take, one after the other."""

import time
from collections.abc import Callable, Sequence

__all__ = ["call_times"]


def call_times(works: Sequence[Callable[[], object]]) -> list[float]:
    """Seconds of each."""
    times = []
    for work in works:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return times
