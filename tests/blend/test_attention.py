"""Attention at scattered positions against its definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvblend.blend.attention import causal_attention, scored_attention
from kvblend.triton_kernels import AttentionSpec


def definition(
    spec: AttentionSpec, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reference: one query and head at a time, in fp64; returns (out, scores)."""
    group = q.shape[1] // keys.shape[1]
    out, scores = torch.zeros(q.shape, dtype=torch.float64), torch.zeros(len(keys), dtype=torch.float64)
    for row, position in enumerate(positions.tolist()):
        first = 0 if spec.sliding_window is None else max(0, position - spec.sliding_window + 1)
        for head in range(q.shape[1]):
            k, v = (
                keys[first : position + 1, head // group].double(),
                values[first : position + 1, head // group].double(),
            )
            logits = k @ q[row, head].double() * spec.scale
            if spec.soft_cap is not None:
                logits = spec.soft_cap * torch.tanh(logits / spec.soft_cap)
            weights = logits.softmax(-1)
            out[row, head] = weights @ v
            scores[first : position + 1] += weights * v.norm(dim=-1) / group
    return out, scores


@settings(deadline=None, max_examples=30)
@given(
    num_tokens=st.integers(1, 150),
    kv_heads=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 3]),
    window=st.sampled_from([None, 1, 7, 64]),
    soft_cap=st.sampled_from([None, 5.0]),
    seed=st.integers(0, 1000),
)
def test_scattered_queries(
    num_tokens: int, kv_heads: int, group: int, window: int | None, soft_cap: float | None, seed: int
) -> None:
    """Any subset of positions, with windows and soft caps, both functions."""
    torch.manual_seed(seed)
    spec = AttentionSpec(0.25, window, soft_cap)
    positions = torch.rand(num_tokens).lt(0.6).nonzero()[:, 0]
    if len(positions) == 0:
        positions = torch.tensor([num_tokens - 1])
    q = torch.randn(len(positions), kv_heads * group, 16)
    keys, values = torch.randn(2, num_tokens, kv_heads, 16)
    expected, expected_scores = definition(spec, q, keys, values, positions)
    torch.testing.assert_close(
        causal_attention(spec, q, keys, values, positions).double(), expected, atol=1e-5, rtol=1e-4
    )
    out, scores = scored_attention(spec, q, keys, values, positions, torch.arange(num_tokens))
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(scores.double(), expected_scores, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Within the dtype's own rounding of the fp32 result."""
    torch.manual_seed(0)
    q, keys, values = torch.randn(5, 6, 64), torch.randn(99, 2, 64), torch.randn(99, 2, 64)
    positions = torch.tensor([3, 40, 41, 77, 98])
    exact = causal_attention(AttentionSpec(0.125), q, keys, values, positions)
    half = causal_attention(AttentionSpec(0.125), q.to(dtype), keys.to(dtype), values.to(dtype), positions)
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), exact, atol=3e-2, rtol=3e-2)
