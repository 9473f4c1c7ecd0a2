"""vLLM's paged KV cache, read and written by slot whatever layout the attention backend keeps.

A block's page holds keys and values of `block_size` tokens in an order that only the backend knows (vLLM's CPU kernels
store keys transposed, CUDA backends split the last axis). Its own writer shows it: tokens whose elements are numbered
are written to the null block, which holds nobody's KV, and where each number lies is the order.

A backend whose kernels know only small blocks has vLLM cut each block into pages of a size that they know: the cache
then has several pages to a block, one after the other, and tokens keep their slots.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kvblend.blend import AttentionSpec, RotaryTable
from kvblend.core.errors import UnsupportedModelError
from kvblend.host_kernels import HostPagedKV
from kvblend.vllm_connector.engine.kv_view import paged_view

__all__ = ["LayerCache"]

DIGIT = 128
"""Numbers are written in base 128: each digit is exact in every float dtype of a KV cache."""


class LayerCache:
    """One attention layer's paged cache, and how the layer attends.

    `group`: its KV cache group. `spec`: its attention. `rotary`: what turns its keys, None where they do not turn.
    `block_size`: tokens of one of vLLM's blocks, whose ids the methods take.
    `keeps_blocks`: whether a request has all its blocks to its end; a sliding window's layers give them back early.
    `view`: the pages for the kernels of a GPU, None where strides cannot say their order; its blocks are pages, which
    `pages` gives. `host_kv`: the same for those of a CPU.
    """

    def __init__(
        self,
        layer: Any,
        group: int,
        spec: AttentionSpec,
        rotary: RotaryTable | None,
        *,
        block_size: int,
        keeps_blocks: bool = True,
    ) -> None:
        self.layer, self.group, self.spec, self.rotary = layer, group, spec, rotary
        self.block_size, self.keeps_blocks = block_size, keeps_blocks
        self._cache: Tensor = layer.kv_cache
        self.page_size: int = self._cache.shape[2]
        if block_size % self.page_size:
            raise UnsupportedModelError(
                f"kvblend does not work with blocks of {block_size} tokens over pages of {self.page_size}"
            )
        self.num_kv_heads: int = layer.num_kv_heads
        self.head_dim: int = layer.head_size
        key_order, value_order = self._learn_order()
        shape = (self.page_size, self.num_kv_heads, self.head_dim)
        self.view = paged_view(self._cache, key_order.view(shape), value_order.view(shape))
        self.host_kv = HostPagedKV.of(self._cache, key_order.view(shape), value_order.view(shape))
        self._key_order, self._value_order = key_order.to(self._cache.device), value_order.to(self._cache.device)

    def pages(self, block_ids: Sequence[int]) -> list[int]:
        """The cache's pages of `block_ids`, in order; those of the null block are the null page."""
        ratio = self.block_size // self.page_size
        return [block and block * ratio + page for block in block_ids for page in range(ratio)]

    def read(self, block_ids: Sequence[int], start: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of tokens `[start, end)`, `[end - start, kv_heads, head_dim]` each; null blocks too."""
        return self.read_pages(self._cache, self.pages(block_ids), start, end)

    def read_pages(self, cache: Tensor, pages: Sequence[int] | Tensor, start: int, end: int) -> tuple[Tensor, Tensor]:
        """As `read`, of a request whose pages in `cache`, the layer's own or one like it, are `pages`."""
        first = start // self.page_size
        wanted = torch.as_tensor(pages[first : -(-end // self.page_size)], device=cache.device)
        read = cache[wanted].reshape(len(wanted), -1)
        skipped = start - first * self.page_size
        shape = (-1, self.num_kv_heads, self.head_dim)
        keys = read[:, self._key_order].view(shape)[skipped : skipped + end - start]
        values = read[:, self._value_order].view(shape)[skipped : skipped + end - start]
        return keys, values

    def write(self, block_ids: Sequence[int], start: int, keys: Tensor, values: Tensor) -> None:
        """Write tokens from `start` on, `[n, kv_heads, head_dim]` each; those in the null block are dropped."""
        positions = torch.arange(start, start + len(keys), device=self._cache.device)
        blocks = torch.as_tensor(block_ids, device=self._cache.device)[positions // self.block_size]
        kept = blocks != 0
        slots = (blocks * self.block_size + positions % self.block_size)[kept]
        self.write_slots(self._cache, slots, keys[kept], values[kept])

    def write_slots(self, cache: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write tokens `[n, kv_heads, head_dim]` at `slots` (int64 `[n]`) of `cache`: the layer's own, or like it."""
        self.layer.impl.do_kv_cache_update(self.layer, keys.contiguous(), values.contiguous(), cache, slots)

    def _learn_order(self) -> tuple[Tensor, Tensor]:
        """Where in a flattened page each of [token, kv_head, head_dim] lies, for keys and for values."""
        shape = (self.page_size, self.num_kv_heads, self.head_dim)
        size = self.page_size * self.num_kv_heads * self.head_dim
        numbers = torch.arange(1, 2 * size + 1)
        slots = torch.arange(self.page_size, device=self._cache.device)
        found = torch.zeros(self._cache[0].numel(), dtype=torch.int64)
        place = 1
        while place <= 2 * size:
            digits = (numbers // place % DIGIT).to(self._cache.dtype).to(self._cache.device)
            self.write_slots(self._cache, slots, digits[:size].view(shape), digits[size:].view(shape))
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
        return order[1 : size + 1], order[size + 1 :]
