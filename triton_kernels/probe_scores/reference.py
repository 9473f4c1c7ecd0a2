"""What `probe_scores` computes, in plain PyTorch."""

import torch
from torch import Tensor

from kvblend.triton_kernels.attention_spec import AttentionSpec
from kvblend.triton_kernels.paged_kv import PagedKV
from kvblend.triton_kernels.probe_scores.context import ProbedContext
from kvblend.triton_kernels.queries import Queries
from kvblend.triton_kernels.selective_attention.reference import attention_weights, read_paged

__all__ = ["probe_scores_reference"]


def probe_scores_reference(
    q: Tensor,
    own_keys: Tensor,
    own_values: Tensor,
    queries: Queries,
    cache: PagedKV,
    block_tables: Tensor,
    context: ProbedContext,
    spec: AttentionSpec,
    scores: Tensor,
) -> Tensor:
    """Add to `scores` in place; returns the attention output."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    group, start, token = q.shape[1] // cache.num_kv_heads, 0, 0
    for table, length, num_tokens in zip(block_tables, queries.lengths, context.lengths, strict=True):
        rows, tokens = slice(start, start + length), slice(token, token + num_tokens)
        start, token = rows.stop, tokens.stop
        if length == 0:
            continue
        positions = queries.positions[rows]
        seen = torch.arange(num_tokens, device=q.device)
        if spec.sliding_window is not None:
            seen = (
                seen[int(positions[0]) - spec.sliding_window + 1 :]
                if int(positions[0]) >= spec.sliding_window
                else seen
            )
        if context.readable is not None:
            seen = seen[context.readable[tokens][seen].bool()]
        keys, values = read_paged(cache, table, seen)
        keys, values = torch.cat((keys, own_keys[rows].float())), torch.cat((values, own_values[rows].float()))
        weights, _ = attention_weights(spec, q[rows].float(), keys, positions, torch.cat((seen, positions)))
        out[rows] = torch.einsum("hqk,khd->qhd", weights, values.repeat_interleave(group, dim=1)).to(q.dtype)
        received = weights.sum(1).view(cache.num_kv_heads, group, -1).sum(1)
        given = received * values.norm(dim=-1).T / group
        scores[:, tokens][:, seen] += given[:, : len(seen)]
    return out
