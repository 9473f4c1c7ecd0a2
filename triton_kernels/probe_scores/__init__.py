"""The question's attention over paged context, and each context token's score: what a probe's layers need."""

import torch
from torch import Tensor

from kvblend.triton_kernels.attention_spec import AttentionSpec, check_queries
from kvblend.triton_kernels.launch import Launch, uses_kernel
from kvblend.triton_kernels.paged_kv import PagedKV
from kvblend.triton_kernels.parts import Parts
from kvblend.triton_kernels.probe_scores.context import ProbedContext
from kvblend.triton_kernels.probe_scores.reference import probe_scores_reference
from kvblend.triton_kernels.queries import Queries
from kvblend.triton_kernels.tiles import Tiles, capability_of, choose_tiles, num_splits

__all__ = ["ProbedContext", "launches", "probe_scores", "probe_scores_reference"]


def probe_scores(
    q: Tensor,
    own_keys: Tensor,
    own_values: Tensor,
    queries: Queries,
    cache: PagedKV,
    block_tables: Tensor,
    context: ProbedContext,
    spec: AttentionSpec,
    *,
    scores: Tensor | None = None,
    num_parts: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend from each question to its context and itself, and score every context token.

    q: `[num_queries, num_heads, head_dim]`; own_keys, own_values: `[num_queries, num_kv_heads, head_dim]`, the
    questions' own, which are in no block; all of the cache's dtype. A context token that is not readable is not looked
    at. Returns (attention of q's shape and dtype, scores fp32 `[num_kv_heads, context.num_tokens]`): attention weight
    times value norm, summed over queries and averaged over the heads that share a KV head; sum over axis 0 for a
    layer's. Given `scores` are added to in place, so that layers add up; the order of additions is fixed. Never holds
    the attention matrix. Raises ValueError.
    """
    check_queries(q, queries, cache, block_tables, spec, num_keys=context.longest)
    _check(q, own_keys, own_values, queries, cache, context, scores)
    if num_parts is not None and not 1 <= num_parts <= 64:
        raise ValueError(f"num_parts is {num_parts}: it must be from 1 to 64")
    if scores is None:
        scores = torch.zeros(cache.num_kv_heads, context.num_tokens, dtype=torch.float32, device=q.device)
    if not uses_kernel(q):
        out = probe_scores_reference(q, own_keys, own_values, queries, cache, block_tables, context, spec, scores)
        return out, scores
    plan, parts = launches(
        q, own_keys, own_values, queries, cache, block_tables, context, spec, scores=scores, num_parts=num_parts
    )
    for launch in plan:
        launch.run()
    return parts.out, scores


def launches(
    q: Tensor,
    own_keys: Tensor,
    own_values: Tensor,
    queries: Queries,
    cache: PagedKV,
    block_tables: Tensor,
    context: ProbedContext,
    spec: AttentionSpec,
    *,
    scores: Tensor,
    num_parts: int | None = None,
    capability: int | None = None,
) -> tuple[list[Launch], Parts]:
    """The launches that do this, their arguments already checked, and where they leave the attention."""
    import triton

    from kvblend.triton_kernels.probe_scores.column_kernel import column_scores_kernel
    from kvblend.triton_kernels.probe_scores.kernel import probe_attention_kernel

    capability = capability or capability_of(q.device)
    tiles = choose_tiles(cache.head_dim, q.dtype, capability)
    num_requests, group = len(queries.lengths), q.shape[1] // cache.num_kv_heads
    num_tiles = triton.cdiv(queries.longest, tiles.rows // group)
    if num_parts is None:
        num_parts = num_splits(num_tiles * cache.num_kv_heads * num_requests, context.longest, q)
    parts = Parts.of(q, num_parts)
    norms, strides = torch.empty_like(scores), cache.strides()
    shared = {
        "q": q,
        "positions": queries.positions,
        "starts": queries.starts,
        "context_starts": context.starts,
        "readable": context.starts if context.readable is None else context.readable,
        "norms": norms,
        "num_context_tokens": context.num_tokens,
        "keys": cache.keys,
        "block_tables": block_tables,
        "scale": float(spec.scale),
        "soft_cap": float(spec.soft_cap or 0.0),
        "q_token_stride": q.stride(0),
        "q_head_stride": q.stride(1),
        "table_stride": block_tables.stride(0),
        **{name: stride for name, stride in strides.items() if name.startswith("key")},
    }
    own = {
        "values": cache.values,
        **{name: stride for name, stride in strides.items() if name.startswith("value")},
        "own_keys": own_keys,
        "own_values": own_values,
        "own_key_token_stride": own_keys.stride(0),
        "own_key_head_stride": own_keys.stride(1),
        "own_value_token_stride": own_values.stride(0),
        "own_value_head_stride": own_values.stride(1),
    }
    constants = {
        **spec.constants(),
        "HAS_READABLE": context.readable is not None,
        "NUM_HEADS": q.shape[1],
        "GROUP": group,
        "HEAD_DIM": cache.head_dim,
        "DIMS": max(16, triton.next_power_of_2(cache.head_dim)),
        "BLOCK_SIZE": cache.block_size,
    }
    attend = Launch(
        probe_attention_kernel,
        (num_tiles * num_parts, cache.num_kv_heads, num_requests),
        {
            **shared,
            **own,
            "sinks": spec.sinks,
            "out": parts.part_out,
            "lse": parts.part_lse,
            "num_queries": q.shape[0],
        },
        {
            **constants,
            "NORMS": "products" if capability >= 90 else "sums",
            "ROWS": tiles.rows,
            "KEYS": tiles.keys,
            "PARTS": num_parts,
        },
        tiles.num_warps,
        tiles.num_stages,
    )
    columns = _column_tiles(tiles)
    without_sinks = {name: value for name, value in constants.items() if name != "HAS_SINKS"}
    score = Launch(
        column_scores_kernel,
        (triton.cdiv(context.longest, columns.keys), cache.num_kv_heads, num_requests),
        {**shared, "lse": parts.lse, "scores": scores},
        {**without_sinks, "ROWS": columns.rows, "KEYS": columns.keys},
        columns.num_warps,
        columns.num_stages,
    )
    return [attend, *parts.merge(), score], parts


def _column_tiles(tiles: Tiles) -> Tiles:
    """The second pass keeps keys and streams queries: small tiles of keys, so that few queries still fill a device."""
    return Tiles(min(tiles.rows, 64), min(tiles.keys, 64), 4, 2)


def _check(
    q: Tensor,
    own_keys: Tensor,
    own_values: Tensor,
    queries: Queries,
    cache: PagedKV,
    context: ProbedContext,
    scores: Tensor | None,
) -> None:
    expected = (q.shape[0], cache.num_kv_heads, cache.head_dim)
    for name, tensor in (("own_keys", own_keys), ("own_values", own_values)):
        if tensor.shape != expected or tensor.dtype != q.dtype or tensor.stride(2) != 1 or tensor.device != q.device:
            raise ValueError(
                f"{name} are {tensor.dtype} {list(tensor.shape)} on {tensor.device}, not {q.dtype} {list(expected)} "
                f"on {q.device} with neighbouring dimensions"
            )
    if len(context.lengths) != len(queries.lengths):
        raise ValueError(f"{len(context.lengths)} contexts for {len(queries.lengths)} requests")
    if context.starts.device != q.device or (context.readable is not None and context.readable.device != q.device):
        raise ValueError(f"the context is on {context.starts.device}, q on {q.device}")
    shape = (cache.num_kv_heads, context.num_tokens)
    if scores is not None and (
        scores.shape != shape
        or scores.dtype != torch.float32
        or not scores.is_contiguous()
        or scores.device != q.device
    ):
        raise ValueError(f"scores are {scores.dtype} {list(scores.shape)}, not contiguous fp32 {list(shape)}")
