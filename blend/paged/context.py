"""One request's context in paged blocks."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kvblend.blend.paged.batch import PagedBatch
from kvblend.blend.paged.caches import PagedCaches

__all__ = ["PagedContextKV"]


class PagedContextKV:
    """Where a request's tokens are.

        block_tables[group] [num_blocks]    token i is in block `block_tables[group][i // block_size]`; 0 is no block
        readable [token]                    False until a context token's KV is there, in every layer

    Tables and `readable` are on CPU, where a pass takes them once; the tables may cover tokens behind the context. A
    probe does not look at tokens that are not readable. Tokens in the null block are neither loaded nor kept, and must
    not be read: a layer whose engine frees blocks behind its sliding window needs a cache and a table of its own.
    """

    def __init__(
        self,
        caches: PagedCaches,
        block_tables: Mapping[int, Tensor],
        *,
        num_tokens: int,
        readable: Tensor | None = None,
    ) -> None:
        """`readable`: bool `[num_tokens]`, by default all is. Raises ValueError where a table is missing or short."""
        self.caches, self.num_tokens = caches, num_tokens
        self.block_tables = {group: table.int() for group, table in block_tables.items()}
        self.readable = torch.ones(num_tokens, dtype=torch.bool) if readable is None else readable
        if self.readable.shape != (num_tokens,) or self.readable.dtype != torch.bool or self.readable.is_cuda:
            raise ValueError(f"readable is {self.readable.dtype} {list(self.readable.shape)}, not bool [{num_tokens}]")
        for group in caches.block_sizes:
            if group not in self.block_tables:
                raise ValueError(f"no block table for group {group}, only for {sorted(self.block_tables)}")
        if self.num_slots < num_tokens:
            raise ValueError(f"the block tables hold {self.num_slots} tokens, the context has {num_tokens}")

    @property
    def num_slots(self) -> int:
        """Tokens that the block tables have room for."""
        return min(size * len(self.block_tables[group]) for group, size in self.caches.block_sizes.items())

    @classmethod
    def batch(cls, contexts: "Sequence[PagedContextKV]", positions: Sequence[Tensor]) -> PagedBatch:
        return PagedBatch(contexts, positions)

    def slots(self, group: int, positions: Tensor) -> Tensor:
        """Where tokens at `positions` (int64 `[n]`, on CPU) lie in the caches of a group: int64 `[n]`."""
        size = self.caches.block_sizes[group]
        return self.block_tables[group][positions // size].long() * size + positions % size
