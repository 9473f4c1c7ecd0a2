"""One kernel launch as data: run now, or compiled ahead of time for another device."""

import os
from contextlib import nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor

__all__ = ["Launch", "kernel_dtype", "to_device", "uses_kernel"]

_INTERPRETER = Lock()
"""Triton's interpreter has one place for the program that it is at, whatever the thread."""


@dataclass(frozen=True)
class Launch:
    """A `@triton.jit` function with all that one launch of it needs."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    """Tensors and numbers known at run time, by parameter name."""
    constants: dict[str, Any]
    """The kernel's `tl.constexpr` parameters."""
    num_warps: int = 4
    num_stages: int = 3

    def run(self) -> None:
        """Launch on the current stream; nothing waits. An empty grid launches nothing."""
        if all(self.grid):
            with _INTERPRETER if _is_interpreted() else nullcontext():
                self.kernel[self.grid](**self.arguments, **self.constants, **self.options())

    def options(self) -> dict[str, Any]:
        """What the compiler is told beside the kernel."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}


def uses_kernel(tensor: Tensor) -> bool:
    """Whether work on `tensor` runs in a kernel: on CUDA, and on CPU in Triton's interpreter if that is switched on."""
    return tensor.is_cuda or _is_interpreted()


def to_device(numbers: Tensor, device: torch.device) -> Tensor:
    """Copy a small CPU table to `device` without waiting for it."""
    if device.type == "cuda":
        return numbers.pin_memory().to(device, non_blocking=True)
    return numbers.to(device)


def kernel_dtype(dtype: torch.dtype) -> Any:
    """Triton's name of a dtype; bytes for E4M3, which kernels decode themselves."""
    import triton.language as tl

    return getattr(tl, "uint8" if dtype == torch.float8_e4m3fn else str(dtype).removeprefix("torch."))


def _is_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"
