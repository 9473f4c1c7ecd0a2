"""Paged caches made from dense keys and values in the orders of `HostPagedKV`, by reshaping alone, and read back."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kvblend.host_kernels import HostPagedKV

__all__ = ["LARGE", "ORDERS", "host_pages", "lay_out", "page_tables", "paged_cache", "read_back", "take_out"]

ORDERS = ("plain", "packed")
LARGE = 1e37
"""What lies where nobody may look: its products with queries are finite in fp32."""


def lay_out(order: str, keys: Tensor, values: Tensor) -> Tensor:
    """Pages `[num_pages, kv_heads, page_size, 2 * head_dim]` of `[num_pages, page_size, kv_heads, head_dim]` each.

    vLLM's shape for a CPU: a head's keys, then its values.
    """
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    num_pages, num_kv_heads, page_size, head_dim = keys.shape
    if order == "plain":
        keys = keys.transpose(2, 3)
    else:
        outer = (num_pages, num_kv_heads)
        keys = keys.reshape(*outer, page_size // 16, 16, head_dim // 2, 2).permute(0, 1, 2, 4, 3, 5)
        values = values.reshape(*outer, page_size // 2, 2, head_dim // 16, 16).permute(0, 1, 4, 2, 5, 3)
    halves = [half.reshape(num_pages, num_kv_heads, -1) for half in (keys, values)]
    return torch.cat(halves, 2).view(num_pages, num_kv_heads, page_size, 2 * head_dim)


def take_out(order: str, cache: Tensor) -> tuple[Tensor, Tensor]:
    """Undo `lay_out`."""
    num_pages, num_kv_heads, page_size, width = cache.shape
    outer, head_dim = (num_pages, num_kv_heads), width // 2
    keys, values = cache.reshape(*outer, 2, -1).unbind(2)
    if order == "plain":
        keys = keys.view(*outer, head_dim, page_size).transpose(2, 3)
    else:
        keys = keys.view(*outer, page_size // 16, head_dim // 2, 16, 2).permute(0, 1, 2, 4, 3, 5)
        values = values.view(*outer, head_dim // 16, page_size // 2, 16, 2).permute(0, 1, 3, 5, 2, 4)
    shape = (*outer, page_size, head_dim)
    return keys.reshape(shape).transpose(1, 2), values.reshape(shape).transpose(1, 2)


def host_pages(order: str, cache: Tensor) -> HostPagedKV | None:
    """What `HostPagedKV.of` makes of a cache, told where elements lie by `take_out` of numbered ones."""
    numbers = torch.arange(cache[0].numel()).view(1, *cache.shape[1:])
    key_order, value_order = take_out(order, numbers)
    return HostPagedKV.of(cache, key_order[0], value_order[0])


def page_tables(lengths: Sequence[int], page_size: int) -> list[Tensor]:
    """Scattered pages from 1 on of sequences of `lengths` tokens: int32 `[num_pages]` each."""
    counts = [-(-length // page_size) for length in lengths]
    return list(torch.split((torch.randperm(sum(counts)) + 1).int(), counts))


def paged_cache(
    order: str, contexts: Sequence[tuple[Tensor, Tensor]], tables: Sequence[Tensor], page_size: int, *, behind: float
) -> Tensor:
    """A cache that holds contexts, keys and values `[n, kv_heads, head_dim]` each, in the pages of `tables`.

    `behind`: every element that is no context's, those of the null page too.
    """
    first = contexts[0][0]
    num_pages = 1 + sum(len(table) for table in tables)
    dense = torch.full((2, num_pages, page_size, *first.shape[1:]), behind, dtype=first.dtype)
    for context, table in zip(contexts, tables, strict=True):
        places = torch.arange(len(context[0]))
        pages = table.long()[places // page_size]
        for half, own in zip(dense, context, strict=True):
            half[pages, places % page_size] = own
    return lay_out(order, dense[0], dense[1])


def read_back(order: str, cache: Tensor, table: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Keys and values `[num_tokens, kv_heads, head_dim]` of the context in the pages of `table`."""
    keys, values = take_out(order, cache[table.long()])
    return keys.flatten(0, 1)[:num_tokens], values.flatten(0, 1)[:num_tokens]
