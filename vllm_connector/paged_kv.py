"""vLLM's paged KV cache, read and written by slot whatever layout the attention backend keeps.

A block's page holds keys and values of `block_size` tokens in an order that only the backend knows (vLLM's CPU kernels
store keys transposed, CUDA backends split the last axis). Its own writer shows it: tokens whose elements are numbered
are written to the null block, which holds nobody's KV, and where each number lies is the order.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kvblend.core.errors import UnsupportedModelError

__all__ = ["PagedLayer"]

DIGIT = 128
"""Numbers are written in base 128: each digit is exact in every float dtype of a KV cache."""


class PagedLayer:
    """One attention layer's paged cache."""

    def __init__(self, layer: Any, group: int) -> None:
        self.layer, self.group = layer, group
        self._cache: Tensor = layer.kv_cache
        self.block_size: int = self._cache.shape[2]
        self.num_kv_heads: int = layer.num_kv_heads
        self.head_dim: int = layer.head_size
        self._key_order, self._value_order = self._learn_order()

    def read(self, block_ids: Sequence[int], start: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of tokens `[start, end)`, `[end - start, kv_heads, head_dim]` each; null blocks too."""
        first = start // self.block_size
        blocks = torch.as_tensor(block_ids[first : -(-end // self.block_size)], device=self._cache.device)
        pages = self._cache[blocks].reshape(len(blocks), -1)
        skipped = start - first * self.block_size
        shape = (-1, self.num_kv_heads, self.head_dim)
        keys = pages[:, self._key_order].view(shape)[skipped : skipped + end - start]
        values = pages[:, self._value_order].view(shape)[skipped : skipped + end - start]
        return keys, values

    def write(self, block_ids: Sequence[int], start: int, keys: Tensor, values: Tensor) -> None:
        """Write tokens from `start` on, `[n, kv_heads, head_dim]` each; those in the null block are dropped."""
        positions = torch.arange(start, start + len(keys), device=self._cache.device)
        blocks = torch.as_tensor(block_ids, device=self._cache.device)[positions // self.block_size]
        kept = blocks != 0
        slots = (blocks * self.block_size + positions % self.block_size)[kept]
        self._write_slots(slots, keys[kept], values[kept])

    def _write_slots(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        self.layer.impl.do_kv_cache_update(self.layer, keys.contiguous(), values.contiguous(), self._cache, slots)

    def _learn_order(self) -> tuple[Tensor, Tensor]:
        """Where in a flattened page each of [token, kv_head, head_dim] lies, for keys and for values."""
        shape = (self.block_size, self.num_kv_heads, self.head_dim)
        size = self.block_size * self.num_kv_heads * self.head_dim
        numbers = torch.arange(1, 2 * size + 1)
        slots = torch.arange(self.block_size, device=self._cache.device)
        found = torch.zeros(self._cache[0].numel(), dtype=torch.int64)
        place = 1
        while place <= 2 * size:
            digits = (numbers // place % DIGIT).to(self._cache.dtype).to(self._cache.device)
            self._write_slots(slots, digits[:size].view(shape), digits[size:].view(shape))
            found += self._cache[0].reshape(-1).cpu().float().round().long() * place
            place *= DIGIT
        self._cache[0].zero_()
        order = torch.full((2 * size + 1,), -1)
        valid = (found > 0) & (found <= 2 * size)
        order[found[valid]] = torch.arange(len(found))[valid]
        if int(order[1:].min()) < 0 or int(valid.sum()) != 2 * size:
            raise UnsupportedModelError(
                f"the KV layout of {type(self.layer.impl).__name__} is not one that kvblend can read"
            )
        order = order.to(self._cache.device)
        return order[1 : size + 1], order[size + 1 :]
