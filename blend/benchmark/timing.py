"""How long a step takes, over as many runs as a few seconds allow."""

import time
from collections.abc import Callable

import torch

__all__ = ["Times", "times"]

BUDGET_S, FEWEST, MOST = 2.0, 3, 20

Times = tuple[float, float, float]
"""20th, 50th and 80th percentile, in ms."""


def times(run: Callable[[], object], device: torch.device) -> Times:
    """Time `run` from an idle device to its last kernel; the host's work is in it. Runs once to warm up.

    Without a GPU a second run is all: it shows that the benchmark runs.
    """
    run()
    first = _once(run, device)
    if device.type != "cuda":
        return first, first, first
    count = min(MOST, max(FEWEST, int(1000 * BUDGET_S / first)))
    taken = torch.tensor([_once(run, device) for _ in range(count)], dtype=torch.float64)
    low, middle, high = taken.quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist()
    return low, middle, high


def _once(run: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        begun = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - begun)
    begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end))
