"""One layer's pages as the kernels address them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvblend.host_kernels.structures import Pages

__all__ = ["HostPagedKV"]

GROUP = 32
"""Tokens that the kernels take together: a page's size is a multiple."""
MAX_HEAD_DIM = 512


@dataclass(frozen=True)
class HostPagedKV:
    """The order of a layer's pages; every cache of the layer's shape that is like it has the same.

        plain    a head's keys [head_dim][page_size], its values [page_size][head_dim]
        packed   keys [page_size / 16][head_dim / 2][16 tokens][2 dims],
                 values [head_dim / 16][page_size / 2][16 dims][2 tokens]: what matrix instructions take

    Offsets and strides are in elements, within a page but for `page_stride`.
    """

    page_stride: int
    head_stride: int
    key_offset: int
    value_offset: int
    """From a head's keys to its values."""
    page_size: int
    num_kv_heads: int
    head_dim: int
    is_packed: bool
    dtype: torch.dtype

    @classmethod
    def of(cls, cache: Tensor, key_order: Tensor, value_order: Tensor) -> "HostPagedKV | None":
        """What a cache `[num_pages, ...]` is; None where the kernels do not know its order, shape or dtype.

        key_order, value_order: int64 `[page_size, num_kv_heads, head_dim]`, where in a flattened page each element
        lies.
        """
        page_size, num_kv_heads, head_dim = key_order.shape
        if cache.device.type != "cpu" or cache.dtype not in (torch.float32, torch.bfloat16):
            return None
        if page_size % GROUP or head_dim % 16 or head_dim > MAX_HEAD_DIM or not cache[0].is_contiguous():
            return None
        key_offset, first_value = int(key_order[0, 0, 0]), int(value_order[0, 0, 0])
        head_stride = int(key_order[0, 1, 0]) - key_offset if num_kv_heads > 1 else 0
        tokens, dims = torch.arange(page_size)[:, None, None], torch.arange(head_dim)
        heads = torch.arange(num_kv_heads)[:, None] * head_stride
        orders = {
            False: (dims * page_size + tokens, tokens * head_dim + dims),
            True: (
                tokens // 16 * 16 * head_dim + dims // 2 * 32 + tokens % 16 * 2 + dims % 2,
                dims // 16 * 16 * page_size + tokens // 2 * 32 + dims % 16 * 2 + tokens % 2,
            ),
        }
        for is_packed, (keys, values) in orders.items():
            if torch.equal(key_order, key_offset + heads + keys) and torch.equal(
                value_order, first_value + heads + values
            ):
                return cls(
                    cache.stride(0),
                    head_stride,
                    key_offset,
                    first_value - key_offset,
                    page_size,
                    num_kv_heads,
                    head_dim,
                    is_packed,
                    cache.dtype,
                )
        return None

    def structure(self, cache: Tensor) -> Pages:
        """What the kernels take of `cache`, which must outlive it."""
        assert cache.dtype == self.dtype and cache.stride(0) == self.page_stride, "a cache of another layer"
        return Pages(
            cache.data_ptr() + self.key_offset * cache.element_size(),
            self.page_stride,
            self.head_stride,
            self.value_offset,
            self.page_size,
            self.num_kv_heads,
            self.head_dim,
            self.is_packed,
            self.dtype == torch.bfloat16,
        )
