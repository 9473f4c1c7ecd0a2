"""Attention for tokens at scattered positions over a context whose keys are all at hand."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kvblend.triton_kernels import AttentionSpec

__all__ = ["causal_attention", "mean_attention_weights", "probe_attention", "scored_attention"]

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


def _logits(spec: AttentionSpec, q: Tensor, keys: Tensor, visible: Tensor) -> Tensor:
    """Logits in fp32, `[kv_heads, num_q * group, num_k]`, of folded queries; -inf for keys that one does not see."""
    group = q.shape[1] // visible.shape[0]
    logits = torch.matmul(q.float(), keys.float().transpose(-1, -2)) * spec.scale
    if spec.soft_cap is not None:
        logits = spec.soft_cap * torch.tanh(logits / spec.soft_cap)
    return logits.masked_fill(~visible.repeat_interleave(group, 0), float("-inf"))


def _weights(spec: AttentionSpec, q: Tensor, keys: Tensor, visible: Tensor) -> Tensor:
    """Attention weights in fp32, `[kv_heads, num_q * group, num_k]`, of folded queries."""
    return _logits(spec, q, keys, visible).softmax(-1)


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


def probe_attention(
    spec: AttentionSpec,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    norms: Tensor,
    own_keys: Tensor,
    own_values: Tensor,
    *,
    positions: Tensor,
    k_positions: Tensor,
) -> tuple[Tensor, Tensor]:
    """As `scored_attention` over context and question, without a copy of the context, which is what scores are for.

    q: `[n, heads, dim]` of the question, whose own keys and values are `[n, kv_heads, dim]`, at `positions`; keys,
    values: `[num_k, kv_heads, dim]` of the context, at ascending `k_positions` below all of these; norms: fp32
    `[num_k, kv_heads]`, each value's. Returns (out, fp32 `[num_k]`). On a CPU, where flash attention has fp32 logits;
    in bf16 the scores alone come from rounded ones.
    """
    if spec.soft_cap is not None:
        whole = torch.cat((keys, own_keys)), torch.cat((values, own_values))
        out, scores = scored_attention(spec, q, *whole, positions, torch.cat((k_positions, positions)))
        return out, scores[: len(keys)]
    num_kv_heads, group = keys.shape[1], q.shape[1] // keys.shape[1]
    own_k, own_v = own_keys.transpose(0, 1), own_values.transpose(0, 1)
    received = torch.zeros(num_kv_heads, len(keys))
    out = torch.empty_like(q)
    for start in range(0, len(q), QUERIES_PER_BLOCK):
        block = positions[start : start + QUERIES_PER_BLOCK]
        folded = _fold(q[start : start + len(block)], num_kv_heads)
        own_logits = _logits(spec, folded, own_k, _visible(spec, block, positions))
        result, total = torch.matmul(own_logits.softmax(-1), own_v.float()), own_logits.logsumexp(-1)
        first, mask = _seen(spec, block, k_positions)
        if first < len(keys):
            k, v = keys[first:].transpose(0, 1), values[first:].transpose(0, 1)
            below, below_total = _flash(spec, folded, k, v, mask)
            share = torch.sigmoid(below_total - total)
            result = torch.lerp(result, below.float(), share[..., None])
            total = torch.logaddexp(total, below_total)
            _add_weights(received[:, first:], spec, folded, k, total, mask)
        out[start : start + len(block)] = _unfold(result.to(q.dtype), len(block))
    return out, (received * norms.T).sum(0) / group


def _seen(spec: AttentionSpec, positions: Tensor, k_positions: Tensor) -> tuple[int, Tensor | None]:
    """The first of a context's keys that a block of queries behind it sees; which of these each sees, None for all."""
    if spec.sliding_window is None:
        return 0, None
    first = int(torch.searchsorted(k_positions, positions[0] - spec.sliding_window, right=True))
    mask = _visible(spec, positions, k_positions[first:])
    return first, None if bool(mask.all()) else mask


def _flash(spec: AttentionSpec, folded: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention and the log of its weights' sum, fp32 `[kv_heads, rows]`, of folded queries over `[kv_heads, n, dim]`.

    A query that sees no key has -inf for the latter, and what it attends to is 0.
    """
    if mask is None:
        out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            folded[None], k[None], v[None], scale=spec.scale
        )
        return out[0], total[0]
    rows = mask.repeat_interleave(folded.shape[1] // len(mask), 0)
    bias = torch.zeros(rows.shape, dtype=folded.dtype).masked_fill_(~rows, float("-inf"))
    out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        folded[None], k[None], v[None], attn_mask=bias[None, None], scale=spec.scale
    )
    blind = ~rows.any(1)
    return out[0].masked_fill(blind[:, None], 0), total[0].masked_fill(blind, float("-inf"))


def _add_weights(
    received: Tensor, spec: AttentionSpec, folded: Tensor, k: Tensor, total: Tensor, mask: Tensor | None
) -> None:
    """Add to `received` `[kv_heads, n]` the weights that folded queries give keys; `total`: the log of their sum.

    A KV head at a time, so that its weights stay in the core's cache.
    """
    hidden = None if mask is None else ~mask.repeat_interleave(folded.shape[1] // len(mask), 0)
    for own, queries, keys, logs in zip(received, folded, k, total, strict=True):
        logits = torch.matmul(queries, keys.T).float().mul_(spec.scale).sub_(logs[:, None])
        if hidden is not None:
            logits.masked_fill_(hidden, float("-inf"))
        own += logits.exp_().sum(0)


def mean_attention_weights(
    spec: AttentionSpec, q: Tensor, keys: Tensor, positions: Tensor, k_positions: Tensor
) -> Tensor:
    """Attention weights averaged over heads, fp32 `[n, num_k]`; arguments as in `scored_attention`."""
    num_kv_heads = keys.shape[1]
    folded = _fold(q, num_kv_heads)
    weights = _weights(spec, folded, keys.transpose(0, 1), _visible(spec, positions, k_positions))
    return weights.view(num_kv_heads, len(positions), -1, keys.shape[0]).mean((0, 2))
