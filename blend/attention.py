"""Attention for tokens at scattered positions over a context whose keys are all at hand."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kvblend.triton_kernels import AttentionSpec

__all__ = ["causal_attention", "mean_attention_weights", "scored_attention"]

QUERIES_PER_BLOCK = 64


def _visible(spec: AttentionSpec, q_positions: Tensor, k_positions: Tensor) -> Tensor:
    """Boolean `[num_q, num_k]`: which keys each query sees."""
    assert spec.sinks is None, "attention with sinks is answered by kernels alone"
    distance = q_positions[:, None] - k_positions[None]
    visible = distance >= 0
    if spec.sliding_window is not None:
        visible &= distance < spec.sliding_window
    return visible


def _fold(q: Tensor, num_kv_heads: int) -> Tensor:
    """`[n, heads, dim]` -> `[kv_heads, n * group, dim]`: the queries that share a KV head, side by side."""
    n, heads, dim = q.shape
    return q.view(n, num_kv_heads, heads // num_kv_heads, dim).transpose(0, 1).reshape(num_kv_heads, -1, dim)


def _unfold(out: Tensor, n: int) -> Tensor:
    """Undo `_fold`."""
    num_kv_heads, rows, dim = out.shape
    return out.view(num_kv_heads, n, rows // n, dim).transpose(0, 1).reshape(n, -1, dim)


def _weights(spec: AttentionSpec, q: Tensor, keys: Tensor, visible: Tensor) -> Tensor:
    """Attention weights in fp32, `[kv_heads, num_q * group, num_k]`, of folded queries."""
    group = q.shape[1] // visible.shape[0]
    logits = torch.matmul(q.float(), keys.float().transpose(-1, -2)) * spec.scale
    if spec.soft_cap is not None:
        logits = spec.soft_cap * torch.tanh(logits / spec.soft_cap)
    return logits.masked_fill(~visible.repeat_interleave(group, 0), float("-inf")).softmax(-1)


def causal_attention(spec: AttentionSpec, q: Tensor, keys: Tensor, values: Tensor, positions: Tensor) -> Tensor:
    """Attend from tokens at `positions` to keys at positions 0, 1, 2, ...

    q: `[n, heads, dim]` at strictly increasing `positions` (int64 `[n]`); keys, values: `[num_k, kv_heads, dim]` with
    num_k above every position. Returns `[n, heads, dim]` of q's dtype. Each block of queries reads only the keys
    that one of them sees: selected tokens are sorted, so the cost is that of their share of a causal prefill.
    """
    num_kv_heads = keys.shape[1]
    out = torch.empty_like(q)
    for start in range(0, q.shape[0], QUERIES_PER_BLOCK):
        block = positions[start : start + QUERIES_PER_BLOCK]
        num_q, end, begin = len(block), int(block[-1]) + 1, 0
        if spec.sliding_window is not None:
            begin = max(0, int(block[0]) + 1 - spec.sliding_window)
        visible = _visible(spec, block, torch.arange(begin, end, device=q.device))
        folded = _fold(q[start : start + num_q], num_kv_heads)
        k, v = keys[begin:end].transpose(0, 1), values[begin:end].transpose(0, 1)
        if spec.soft_cap is None:
            mask = visible.repeat_interleave(folded.shape[1] // num_q, 0)
            result = F.scaled_dot_product_attention(
                folded[None], k[None], v[None], attn_mask=mask[None, None], scale=spec.scale
            )[0]
        else:
            result = torch.matmul(_weights(spec, folded, k, visible), v.float()).to(q.dtype)
        out[start : start + num_q] = _unfold(result, num_q)
    return out


def scored_attention(
    spec: AttentionSpec, q: Tensor, keys: Tensor, values: Tensor, positions: Tensor, k_positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Attend as above to keys at any `k_positions`, and score each key by what it gives the queries.

    The score of a key is its attention weight times its value's norm, summed over the rank's heads and the queries;
    fp32 `[num_k]`. Returns (out, scores).
    """
    num_kv_heads, group = keys.shape[1], q.shape[1] // keys.shape[1]
    k, v = keys.transpose(0, 1), values.transpose(0, 1)
    received = torch.zeros(num_kv_heads, keys.shape[0], device=q.device)
    out = torch.empty_like(q)
    for start in range(0, q.shape[0], QUERIES_PER_BLOCK):
        block = positions[start : start + QUERIES_PER_BLOCK]
        weights = _weights(
            spec, _fold(q[start : start + len(block)], num_kv_heads), k, _visible(spec, block, k_positions)
        )
        received += weights.sum(1)
        out[start : start + len(block)] = _unfold(torch.matmul(weights, v.float()).to(q.dtype), len(block))
    norms = values.float().norm(dim=-1).T
    return out, (received * norms).sum(0) / group


def mean_attention_weights(
    spec: AttentionSpec, q: Tensor, keys: Tensor, positions: Tensor, k_positions: Tensor
) -> Tensor:
    """Attention weights averaged over heads, fp32 `[n, num_k]`; arguments as in `scored_attention`."""
    num_kv_heads = keys.shape[1]
    folded = _fold(q, num_kv_heads)
    weights = _weights(spec, folded, keys.transpose(0, 1), _visible(spec, positions, k_positions))
    return weights.view(num_kv_heads, len(positions), -1, keys.shape[0]).mean((0, 2))
