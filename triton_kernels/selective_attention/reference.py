"""What `selective_attention` computes, in plain PyTorch, and the dense attention that both references rest on."""

import torch
from torch import Tensor

from kvblend.triton_kernels.attention_spec import AttentionSpec
from kvblend.triton_kernels.paged_kv import PagedKV
from kvblend.triton_kernels.queries import Queries

__all__ = ["attention_weights", "read_paged", "selective_attention_reference"]


def read_paged(cache: PagedKV, block_table: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 keys and values `[n, num_kv_heads, head_dim]` of a sequence's `positions`."""
    blocks, tokens = block_table.long()[positions // cache.block_size], positions % cache.block_size
    return cache.keys[blocks, tokens].float(), cache.values[blocks, tokens].float()


def attention_weights(
    spec: AttentionSpec, q: Tensor, keys: Tensor, positions: Tensor, key_positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Weights fp32 `[num_heads, num_q, num_k]` and log-sum-exp `[num_q, num_heads]` of fp32 q and keys."""
    group = q.shape[1] // keys.shape[1]
    logits = torch.einsum("qhd,khd->hqk", q, keys.repeat_interleave(group, dim=1)) * spec.scale
    if spec.soft_cap is not None:
        logits = spec.soft_cap * torch.tanh(logits / spec.soft_cap)
    distance = positions[:, None] - key_positions[None]
    unseen = distance < 0
    if spec.sliding_window is not None:
        unseen |= distance >= spec.sliding_window
    logits = logits.masked_fill(unseen, -torch.inf)
    if spec.sinks is not None:
        sinks = spec.sinks[:, None, None].expand(-1, q.shape[0], 1)
        lse = torch.cat((logits, sinks), dim=-1).logsumexp(-1)
    else:
        lse = logits.logsumexp(-1)
    return (logits - lse[..., None]).exp(), lse.T


def selective_attention_reference(
    q: Tensor, queries: Queries, cache: PagedKV, block_tables: Tensor, spec: AttentionSpec
) -> tuple[Tensor, Tensor]:
    """Returns (out of q's shape and dtype, log-sum-exp fp32 `[num_queries, num_heads]`)."""
    out, lse = torch.empty(q.shape, dtype=q.dtype, device=q.device), q.new_empty(q.shape[:2], dtype=torch.float32)
    group, start = q.shape[1] // cache.num_kv_heads, 0
    for table, length in zip(block_tables, queries.lengths, strict=True):
        if length == 0:
            continue
        rows = slice(start, start + length)
        start += length
        positions = queries.positions[rows]
        lowest = 0 if spec.sliding_window is None else max(0, int(positions[0]) + 1 - spec.sliding_window)
        key_positions = torch.arange(lowest, int(positions[-1]) + 1, device=q.device)
        keys, values = read_paged(cache, table, key_positions)
        weights, lse[rows] = attention_weights(spec, q[rows].float(), keys, positions, key_positions)
        out[rows] = torch.einsum("hqk,khd->qhd", weights, values.repeat_interleave(group, dim=1)).to(q.dtype)
    return out, lse
