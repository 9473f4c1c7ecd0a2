"""What is done to passage KV on its way through a CPU's cache, each in one pass and outside the interpreter's lock.

Compiled by numba when first called, which takes a second. PyTorch would take several passes, and as many turns at the
lock, for which the engine's own thread waits.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Array", "compile_host_kernels", "copy_with_norms", "has_host_kernels", "rotate", "vectors"]

Array = np.ndarray[Any, Any]


@cache
def _compiled() -> dict[str, Any] | None:
    """The kernels by name; None where numba is not installed. Of bf16 numbers they see the bits."""
    try:
        from numba import njit  # type: ignore[import-untyped]
    except ImportError:
        return None
    widen, narrow = njit(inline="always")(_widen), njit(inline="always")(_narrow)

    def halves_bf16(source: Array, target: Array, cos: Array, sin: Array) -> None:
        num_rows, dim = source.shape
        half = len(cos)
        bits, turned = np.empty(dim, np.uint32), np.empty(dim, np.float32)
        row, turned_bits = bits.view(np.float32), turned.view(np.uint32)
        for index in range(num_rows):
            for place in range(dim):
                bits[place] = widen(source[index, place])
            for pair in range(half):
                first, second = row[pair], row[pair + half]
                turned[pair] = first * cos[pair] - second * sin[pair]
                turned[pair + half] = second * cos[pair] + first * sin[pair]
            for place in range(2 * half, dim):
                turned[place] = row[place]
            for place in range(dim):
                target[index, place] = narrow(turned_bits[place])

    def neighbours_bf16(source: Array, target: Array, cos: Array, sin: Array) -> None:
        num_rows, dim = source.shape
        bits, turned = np.empty(dim, np.uint32), np.empty(dim, np.float32)
        row, turned_bits = bits.view(np.float32), turned.view(np.uint32)
        for index in range(num_rows):
            for place in range(dim):
                bits[place] = widen(source[index, place])
            for pair in range(len(cos)):
                first, second = row[2 * pair], row[2 * pair + 1]
                turned[2 * pair] = first * cos[pair] - second * sin[pair]
                turned[2 * pair + 1] = second * cos[pair] + first * sin[pair]
            for place in range(2 * len(cos), dim):
                turned[place] = row[place]
            for place in range(dim):
                target[index, place] = narrow(turned_bits[place])

    def halves_fp32(source: Array, target: Array, cos: Array, sin: Array) -> None:
        num_rows, dim = source.shape
        half = len(cos)
        for index in range(num_rows):
            for pair in range(half):
                first, second = source[index, pair], source[index, pair + half]
                target[index, pair] = first * cos[pair] - second * sin[pair]
                target[index, pair + half] = second * cos[pair] + first * sin[pair]
            for place in range(2 * half, dim):
                target[index, place] = source[index, place]

    def neighbours_fp32(source: Array, target: Array, cos: Array, sin: Array) -> None:
        num_rows, dim = source.shape
        for index in range(num_rows):
            for pair in range(len(cos)):
                first, second = source[index, 2 * pair], source[index, 2 * pair + 1]
                target[index, 2 * pair] = first * cos[pair] - second * sin[pair]
                target[index, 2 * pair + 1] = second * cos[pair] + first * sin[pair]
            for place in range(2 * len(cos), dim):
                target[index, place] = source[index, place]

    def norms_bf16(source: Array, target: Array, norms: Array) -> None:
        num_rows, dim = source.shape
        bits = np.empty(dim, np.uint32)
        row = bits.view(np.float32)
        for index in range(num_rows):
            for place in range(dim):
                target[index, place] = source[index, place]
                bits[place] = widen(source[index, place])
            total = np.float32(0.0)
            for place in range(dim):
                total += row[place] * row[place]
            norms[index] = np.sqrt(total)

    def norms_fp32(source: Array, target: Array, norms: Array) -> None:
        num_rows, dim = source.shape
        for index in range(num_rows):
            total = np.float32(0.0)
            for place in range(dim):
                target[index, place] = source[index, place]
                total += source[index, place] * source[index, place]
            norms[index] = np.sqrt(total)

    kernels = (halves_bf16, neighbours_bf16, halves_fp32, neighbours_fp32, norms_bf16, norms_fp32)
    return {kernel.__name__: njit(nogil=True, fastmath={"reassoc"})(kernel) for kernel in kernels}


def _widen(bits: Any) -> Any:
    """A bf16 number's bits as those of the fp32 number that it is."""
    return np.uint32(bits) << np.uint32(16)


def _narrow(bits: Any) -> Any:
    """A finite fp32 number's bits to those of the nearest bf16 number, ties to even."""
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


def has_host_kernels(tensor: Tensor) -> bool:
    """Whether the kernels take a tensor: contiguous, bf16 or fp32, on a CPU where numba is installed."""
    fits = tensor.device.type == "cpu" and tensor.dtype in (torch.bfloat16, torch.float32) and tensor.is_contiguous()
    return fits and _compiled() is not None


def compile_host_kernels(dtype: torch.dtype) -> None:
    """Have the kernels ready for tensors of a dtype, so that no request waits for them, where there are any."""
    for interleaved in (False, True):
        source, target = torch.zeros(2, 1, 4, dtype=dtype)
        if has_host_kernels(source):
            angles = torch.ones(1), torch.zeros(1)
            rotate(vectors(source), *angles, interleaved=interleaved, target=vectors(target))
            copy_with_norms(vectors(source), target=vectors(target), norms=torch.zeros(1).numpy())


def vectors(tensor: Tensor) -> Array:
    """What the kernels take: a view of `[..., head_dim]` as `[n, head_dim]`, of bf16 numbers the bits (uint16)."""
    rows = tensor.view(-1, tensor.shape[-1])
    array: Array = (rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows).numpy()
    return array


def rotate(source: Array, cos: Tensor, sin: Tensor, *, interleaved: bool, target: Array) -> None:
    """Turn the pairs of keys, `vectors` of finite numbers, by the angles of cos and sin, fp32 `[rotary_dim / 2]`.

    Computed in fp32; dimensions beyond rotary_dim pass through. `target` is like `source`, and is other memory.
    """
    _kernel("neighbours" if interleaved else "halves", source)(source, target, cos.numpy(), sin.numpy())


def copy_with_norms(source: Array, *, target: Array, norms: Array) -> None:
    """Copy values, `vectors`, to `target`, and each one's norm to `norms`, fp32 `[n]`."""
    _kernel("norms", source)(source, target, norms)


def _kernel(name: str, array: Array) -> Any:
    kernels = _compiled()
    assert kernels is not None
    return kernels[f"{name}_{'bf16' if array.dtype == np.uint16 else 'fp32'}"]
