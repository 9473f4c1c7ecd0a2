"""Attention of scattered queries over paged KV: what a repair's layers need."""

from torch import Tensor

from kvblend.triton_kernels.attention_spec import AttentionSpec, check_queries
from kvblend.triton_kernels.launch import Launch, uses_kernel
from kvblend.triton_kernels.paged_kv import PagedKV
from kvblend.triton_kernels.parts import Parts
from kvblend.triton_kernels.queries import Queries
from kvblend.triton_kernels.selective_attention.reference import selective_attention_reference
from kvblend.triton_kernels.tiles import capability_of, choose_tiles, num_splits

__all__ = ["launches", "selective_attention", "selective_attention_reference"]


def selective_attention(
    q: Tensor,
    queries: Queries,
    cache: PagedKV,
    block_tables: Tensor,
    spec: AttentionSpec,
    *,
    num_parts: int | None = None,
) -> Tensor:
    """Attend from each query to its request's keys up to its own position.

    q: `[num_queries, num_heads, head_dim]` of the cache's dtype; block_tables: integers `[num_requests, max_blocks]`.
    Keys beyond the last query of a tile, and below the window of its first, are never read. `num_parts`: into how many
    parts the keys are split, by default as many as fill the device. Returns `[num_queries, num_heads, head_dim]` of q's
    dtype; accumulated in fp32. Raises ValueError.
    """
    check_queries(q, queries, cache, block_tables, spec, num_keys=queries.last_position + 1)
    if num_parts is not None and not 1 <= num_parts <= 64:
        raise ValueError(f"num_parts is {num_parts}: it must be from 1 to 64")
    if not uses_kernel(q):
        return selective_attention_reference(q, queries, cache, block_tables, spec)[0]
    plan, parts = launches(q, queries, cache, block_tables, spec, num_parts=num_parts)
    for launch in plan:
        launch.run()
    return parts.out


def launches(
    q: Tensor,
    queries: Queries,
    cache: PagedKV,
    block_tables: Tensor,
    spec: AttentionSpec,
    *,
    num_parts: int | None = None,
    capability: int | None = None,
) -> tuple[list[Launch], Parts]:
    """The launches that do this, their arguments already checked, and where they leave the result."""
    import triton

    from kvblend.triton_kernels.selective_attention.kernel import selective_attention_kernel

    tiles = choose_tiles(cache.head_dim, q.dtype, capability or capability_of(q.device))
    group = q.shape[1] // cache.num_kv_heads
    num_tiles = triton.cdiv(queries.longest, tiles.rows // group)
    if num_parts is None:
        programs = num_tiles * cache.num_kv_heads * len(queries.lengths)
        num_parts = num_splits(programs, queries.last_position + 1, q)
    parts = Parts.of(q, num_parts)
    attend = Launch(
        selective_attention_kernel,
        (num_tiles * num_parts, cache.num_kv_heads, len(queries.lengths)),
        {
            "q": q,
            "positions": queries.positions,
            "starts": queries.starts,
            "keys": cache.keys,
            "values": cache.values,
            "block_tables": block_tables,
            "sinks": spec.sinks,
            "out": parts.part_out,
            "lse": parts.part_lse,
            "num_queries": q.shape[0],
            "num_tiles": num_tiles,
            "scale": float(spec.scale),
            "soft_cap": float(spec.soft_cap or 0.0),
            "q_token_stride": q.stride(0),
            "q_head_stride": q.stride(1),
            "table_stride": block_tables.stride(0),
            **cache.strides(),
        },
        {
            **spec.constants(),
            "NUM_HEADS": q.shape[1],
            "GROUP": group,
            "HEAD_DIM": cache.head_dim,
            "DIMS": max(16, triton.next_power_of_2(cache.head_dim)),
            "BLOCK_SIZE": cache.block_size,
            "ROWS": tiles.rows,
            "KEYS": tiles.keys,
            "PARTS": num_parts,
        },
        tiles.num_warps,
        tiles.num_stages,
    )
    return [attend, *parts.merge()], parts
