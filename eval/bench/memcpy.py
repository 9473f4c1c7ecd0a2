"""How long a plain copy of so many bytes takes."""

import statistics
import time

import torch

__all__ = ["memcpy_ms"]

LEAST_BYTES = 512 << 20
"""Two such buffers are larger than the caches of the CPUs that we know: what is copied comes from memory."""
REPEATS = 7


def memcpy_ms(num_bytes: int, device: torch.device) -> float:
    """Median milliseconds of `torch.Tensor.copy_` of `num_bytes` between two buffers of `device`, with torch's threads.

    The buffers are touched before, and have at least `LEAST_BYTES`; the time is that share of them.
    """
    size = max(num_bytes, LEAST_BYTES)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros(size, dtype=torch.uint8, device=device)
    times = []
    for _ in range(REPEATS):
        began = _now(device)
        target.copy_(source)
        times.append(_now(device) - began)
    return statistics.median(times) * 1e3 * num_bytes / size


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
