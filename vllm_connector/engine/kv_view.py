"""A layer's pages as strided views, which the kernels can address."""

import torch
from torch import Tensor

from kvblend.triton_kernels import PagedKV
from kvblend.triton_kernels.paged_kv import CACHE_DTYPES

__all__ = ["paged_view"]

MAX_HEAD_DIM = 256


def paged_view(cache: Tensor, key_order: Tensor, value_order: Tensor) -> PagedKV | None:
    """View `cache` `[num_blocks, ...]`, of any strides, as keys and values by block and token, without a copy.

    key_order, value_order: int64 `[block_size, num_kv_heads, head_dim]` on CPU, where in a flattened page each element
    lies. None where a page's order is not one that strides can say (keys packed for a CPU's matrix instructions), or
    where the kernels do not take its dtype or head_dim.
    """
    if cache.dtype not in CACHE_DTYPES or key_order.shape[2] % 2 or key_order.shape[2] > MAX_HEAD_DIM:
        return None
    keys, values = _strided(cache, key_order), _strided(cache, value_order)
    return None if keys is None or values is None else PagedKV(keys, values)


def _strided(cache: Tensor, order: Tensor) -> Tensor | None:
    offsets = torch.zeros_like(order)
    rest = order
    for size, stride in zip(reversed(cache.shape[1:]), reversed(cache.stride()[1:]), strict=True):
        offsets += rest % size * stride
        rest = rest // size
    first = int(offsets.flatten()[0])
    strides, expected = [], torch.full_like(offsets, first)
    for axis, size in enumerate(offsets.shape):
        stride = int(offsets.select(axis, 1).flatten()[0]) - first if size > 1 else 0
        strides.append(stride)
        shape = [-1 if other == axis else 1 for other in range(offsets.dim())]
        expected += (torch.arange(size) * stride).view(shape)
    if not torch.equal(offsets, expected):
        return None
    return cache.as_strided((cache.shape[0], *order.shape), (cache.stride(0), *strides), cache.storage_offset() + first)
