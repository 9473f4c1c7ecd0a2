"""What is done to KV in one pass on a CPU, against PyTorch in several."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvblend.blend.host_kernels import copy_with_norms, has_host_kernels, rotate, vectors

DTYPES = [torch.bfloat16, torch.float32]


@given(
    dtype=st.sampled_from(DTYPES),
    num_rows=st.integers(1, 40),
    dim=st.sampled_from([2, 6, 64, 80]),
    partial=st.booleans(),
    interleaved=st.booleans(),
    seed=st.integers(0, 99),
)
def test_rotate(dtype: torch.dtype, num_rows: int, dim: int, partial: bool, interleaved: bool, seed: int) -> None:
    """Pairs turned in fp32 and rounded once, to the bit; what is not rotary passes through."""
    torch.manual_seed(seed)
    rotary_dim = max(2, dim // 4 * 2) if partial else dim
    source, target = torch.randn(num_rows, 3, dim).to(dtype) * 9, torch.full((num_rows, 3, dim), torch.nan, dtype=dtype)
    angles = torch.rand(rotary_dim // 2) * 6
    cos, sin = angles.cos(), angles.sin()
    rotate(vectors(source), cos, sin, interleaved=interleaved, target=vectors(target))

    turned, expected = source[..., :rotary_dim].float(), source.clone()
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
        result = torch.stack((first * cos - second * sin, second * cos + first * sin), -1).flatten(-2)
    else:
        first, second = turned.chunk(2, -1)
        result = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    expected[..., :rotary_dim] = result.to(dtype)
    assert torch.equal(target, expected)


@given(dtype=st.sampled_from(DTYPES), num_rows=st.integers(1, 40), dim=st.sampled_from([1, 64, 80]))
def test_copy_with_norms(dtype: torch.dtype, num_rows: int, dim: int) -> None:
    """A copy to the bit, and norms in fp32."""
    values, norms = torch.randn(num_rows, 2, dim).to(dtype), torch.full((num_rows, 2), torch.nan)
    target = torch.full_like(values, torch.nan)
    copy_with_norms(vectors(values), target=vectors(target), norms=norms.view(-1).numpy())
    assert torch.equal(target, values)
    torch.testing.assert_close(norms, values.float().norm(dim=-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_kernels_take(dtype: torch.dtype) -> None:
    """Neither strided memory nor fp16, which numba does not compute with."""
    assert has_host_kernels(torch.zeros(4, 4, dtype=dtype))
    assert not has_host_kernels(torch.zeros(4, 4, dtype=dtype).T[:, :2])
    assert not has_host_kernels(torch.zeros(4, 4, dtype=torch.float16))
