"""What is measured of one kernel, and with what."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kvblend.triton_kernels.benchmark.graph import captured
from kvblend.triton_kernels.paged_kv import PagedKV

__all__ = [
    "BLOCK_SIZE",
    "HEAD_DIM",
    "NUM_HEADS",
    "NUM_KV_HEADS",
    "KernelResult",
    "checked_error",
    "copy_ms_per_byte",
    "random_cache",
    "timed",
    "times",
]

BLOCK_SIZE, NUM_KV_HEADS, NUM_HEADS, HEAD_DIM = 16, 8, 32, 128
"""Of Llama-3.1-8B, in blocks as vLLM has them on CUDA."""


@dataclass(frozen=True)
class KernelResult:
    """One kernel at one shape. `max_error` is the largest absolute difference from the reference.

    `floor_ms`: moving the same bytes at the rate of a large copy; computing the same products at the rate of flash
    attention on a dense causal prefill; for probe_scores, selective_attention on the same queries. None without a GPU.
    The row sdpa_explicit_mask is PyTorch's own attention at selective_attention's shape, there to compare: no error.
    """

    kernel: str
    shape: str
    dtype: str
    ms_p20: float
    ms_p50: float
    ms_p80: float
    floor_ms: float | None
    max_error: float | None

    @property
    def fraction_of_floor(self) -> float | None:
        """1.0 is as fast as the floor, 0.5 takes twice as long."""
        return None if self.floor_ms is None else self.floor_ms / self.ms_p50


def times(function: Callable[[], object], device: torch.device) -> tuple[float, float, float]:
    """20th, 50th and 80th percentile of a call, in ms; on a GPU with a cold L2 cache, and of its kernels alone."""
    if device.type == "cuda":
        from triton.testing import do_bench

        low, middle, high = do_bench(captured(function), warmup=100, rep=400, quantiles=[0.2, 0.5, 0.8])
        return float(low), float(middle), float(high)
    taken = []
    for _ in range(5):
        begun = time.perf_counter()
        function()
        taken.append(1000 * (time.perf_counter() - begun))
    taken.sort()
    return taken[1], statistics.median(taken), taken[3]


def copy_ms_per_byte(device: torch.device) -> float | None:
    """Time to read or write a byte in a large device-to-device copy."""
    if device.type != "cuda":
        return None
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return times(lambda: target.copy_(source), device)[1] / (2 * source.numel())


def timed(
    kernel: str,
    shape: str,
    dtype: str,
    run: Callable[[], object],
    floor_ms: float | None,
    error: float | None,
    device: torch.device,
) -> KernelResult:
    """Time `run`, which gave `error`; `floor_ms` and the names as in KernelResult."""
    return KernelResult(kernel, shape, dtype, *times(run, device), floor_ms, error)


def random_cache(num_tokens: int, device: torch.device) -> PagedKV:
    """One layer's bf16 blocks for so many tokens, and the null block."""
    shape = (num_tokens // BLOCK_SIZE + 1, NUM_KV_HEADS, BLOCK_SIZE, 2 * HEAD_DIM)
    return PagedKV.from_joined(torch.randn(shape, dtype=torch.bfloat16, device=device))


def checked_error(ours: Tensor, theirs: Tensor, tolerance: float) -> float:
    """Largest absolute difference. Raises AssertionError where it is above `tolerance`."""
    error = float((ours.float() - theirs.float()).abs().max())
    assert error <= tolerance, f"off by {error}, more than {tolerance}"
    return error
