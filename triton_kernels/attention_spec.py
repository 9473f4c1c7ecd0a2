"""What an attention layer does beyond softmax(q k), and the checks that both attention kernels share."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvblend.triton_kernels.paged_kv import PagedKV
from kvblend.triton_kernels.queries import Queries

__all__ = ["AttentionSpec", "check_queries"]


@dataclass(frozen=True)
class AttentionSpec:
    """The query at position p sees the key at position j iff p - sliding_window < j <= p."""

    scale: float
    sliding_window: int | None = None
    soft_cap: float | None = None
    sinks: Tensor | None = None
    """fp32 `[num_heads]`: a logit a head that takes weight and gives no value."""

    def __post_init__(self) -> None:
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window is {self.sliding_window}: it must be at least 1")
        if self.soft_cap is not None and self.soft_cap <= 0:
            raise ValueError(f"soft_cap is {self.soft_cap}: it must be positive")

    def constants(self) -> dict[str, Any]:
        """The constants by which kernels know it; a window of 0 is none."""
        return {
            "WINDOW": self.sliding_window or 0,
            "HAS_CAP": self.soft_cap is not None,
            "HAS_SINKS": self.sinks is not None,
        }


def check_queries(
    q: Tensor, queries: Queries, cache: PagedKV, block_tables: Tensor, spec: AttentionSpec, *, num_keys: int
) -> None:
    """Raise ValueError unless `q` `[num_queries, num_heads, head_dim]`, the tables and the cache fit together.

    `num_keys`: how many keys of the cache a request may read.
    """
    num_heads, num_queries = q.shape[1] if q.dim() == 3 else 0, sum(queries.lengths)
    if q.dim() != 3 or q.shape[0] != num_queries or q.shape[2] != cache.head_dim or q.stride(2) != 1:
        raise ValueError(
            f"q is {list(q.shape)} of strides {q.stride()}, not [{num_queries}, num_heads, {cache.head_dim}]"
        )
    if num_heads == 0 or num_heads % cache.num_kv_heads:
        raise ValueError(f"{num_heads} query heads are no multiple of {cache.num_kv_heads} KV heads")
    if q.dtype != cache.keys.dtype:
        raise ValueError(f"q is {q.dtype}, the cache {cache.keys.dtype}")
    if block_tables.dim() != 2 or block_tables.shape[0] != len(queries.lengths) or block_tables.is_floating_point():
        raise ValueError(
            f"block_tables are {block_tables.dtype} {list(block_tables.shape)}, not integers "
            f"[{len(queries.lengths)}, max_blocks]"
        )
    if num_keys > block_tables.shape[1] * cache.block_size:
        raise ValueError(
            f"{num_keys} keys do not fit block tables of {block_tables.shape[1]} blocks of {cache.block_size}"
        )
    if spec.sinks is not None and (spec.sinks.shape != (num_heads,) or spec.sinks.dtype != torch.float32):
        raise ValueError(f"sinks are {spec.sinks.dtype} {list(spec.sinks.shape)}, not fp32 [{num_heads}]")
    for name, tensor in (("q", q), ("positions", queries.positions), ("block_tables", block_tables)):
        if tensor.device != cache.keys.device:
            raise ValueError(f"{name} are on {tensor.device}, the cache on {cache.keys.device}")
