"""Random paged caches in the layouts of vLLM's attention backends, and tokens' slots in them."""

import torch
from torch import Tensor

from kvblend.triton_kernels import PagedKV

LAYOUTS = ("joined", "joined, tokens first", "split", "split, heads first", "keys transposed")


def paged_cache(
    layout: str, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> PagedKV:
    """A cache full of NaN, so that what was not written shows."""

    def full(*shape: int) -> Tensor:
        return torch.full(shape, torch.nan, dtype=dtype)

    if layout == "joined":
        return PagedKV.from_joined(full(num_blocks, num_kv_heads, block_size, 2 * head_dim))
    if layout == "joined, tokens first":
        return PagedKV.from_joined(full(num_blocks, block_size, num_kv_heads, 2 * head_dim).transpose(1, 2))
    if layout == "split":
        return PagedKV.from_split(full(num_blocks, 2, block_size, num_kv_heads, head_dim))
    if layout == "split, heads first":
        return PagedKV.from_split(full(num_blocks, 2, num_kv_heads, block_size, head_dim), heads_first=True)
    return PagedKV.from_transposed_keys(full(num_blocks, num_kv_heads, block_size, 2 * head_dim))


def block_tables(lengths: list[int], block_size: int) -> tuple[Tensor, int]:
    """Scattered blocks for sequences of `lengths`, int32 `[num_sequences, longest]` padded with the null block, and
    how many blocks the cache must have."""
    counts = [-(-length // block_size) for length in lengths]
    free = (torch.randperm(sum(counts)) + 1).tolist()
    tables = torch.zeros(len(lengths), max(counts), dtype=torch.int32)
    for row, count in enumerate(counts):
        tables[row, :count] = torch.tensor([free.pop() for _ in range(count)], dtype=torch.int32)
    return tables, sum(counts) + 1


def slots_of(table: Tensor, num_tokens: int, block_size: int) -> Tensor:
    """Slots of a sequence's first tokens, int64 `[num_tokens]`."""
    positions = torch.arange(num_tokens)
    return table.long()[positions // block_size] * block_size + positions % block_size


def fill(cache: PagedKV, slots: Tensor) -> None:
    """Random keys and values at `slots`."""
    for view in (cache.keys, cache.values):
        numbers = torch.randn(len(slots), *view.shape[2:]).to(view.dtype)
        view[slots // cache.block_size, slots % cache.block_size] = numbers
