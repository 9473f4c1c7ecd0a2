"""How close attention kernels come to plain PyTorch, for each dtype, order of pages and kind of product."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvblend.host_kernels import HostKernels
from kvblend.triton_kernels import AttentionSpec

__all__ = ["MODES", "Mode", "assert_near", "unwritten_shows"]


@dataclass(frozen=True)
class Mode:
    """`in_bf16`: whether products are of bf16 numbers, where the CPU has them."""

    dtype: torch.dtype
    order: str
    in_bf16: bool

    def __str__(self) -> str:
        return f"{self.dtype}-{self.order}" + ("-products" if self.in_bf16 else "")

    def of(self, kernels: HostKernels) -> HostKernels:
        return replace(kernels, in_bf16=self.in_bf16 and kernels.in_bf16)

    def tolerance(self, spec: AttentionSpec) -> float:
        """Of an output, of the norm of the largest value: bf16 rounds outputs, and weights of bf16 products.

        A capped logit is the cap times a number near 0 that is rounded as one near 1.
        """
        if self.dtype == torch.float32:
            return 2e-6 + 4e-7 * (spec.soft_cap or 0.0)
        return 4e-3 if self.in_bf16 else 2.1e-3

    def score_tolerance(self, spec: AttentionSpec) -> float:
        """Of a token's score, of itself: only weights of bf16 products are rounded."""
        return 4e-3 if self.in_bf16 else 1e-5 + 4e-7 * (spec.soft_cap or 0.0)


MODES = [
    Mode(torch.float32, "plain", False),
    Mode(torch.float32, "packed", False),
    Mode(torch.bfloat16, "plain", False),
    Mode(torch.bfloat16, "packed", False),
    Mode(torch.bfloat16, "plain", True),
    Mode(torch.bfloat16, "packed", True),
]


@contextmanager
def unwritten_shows() -> Iterator[None]:
    """Memory of new tensors is full of NaN, which is what PyTorch's deterministic mode does besides."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def assert_near(out: Tensor, expected: Tensor, *, bound: float) -> None:
    """Every number is there, and none of `out` is farther than `bound` from `expected`."""
    assert out.shape == expected.shape
    assert not bool(out.isnan().any()), f"{int(out.isnan().sum())} of {out.numel()} are NaN or were not written"
    worst = float((out.float() - expected.float()).abs().max()) if out.numel() else 0.0
    assert worst <= bound, f"{worst} from what is expected, over {bound}"
