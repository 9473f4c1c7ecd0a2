"""Attention from scattered tokens of several requests over pages, against plain PyTorch."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvblend.blend.attention import causal_attention
from kvblend.host_kernels import HostKernels, Rows, attend
from kvblend.triton_kernels import AttentionSpec
from tests.host_kernels.attention_modes import MODES, Mode, assert_near, unwritten_shows
from tests.host_kernels.paged_caches import LARGE, host_pages, page_tables, paged_cache

NUM_ROWS = [1, 7, 63, 130]


@dataclass
class Case:
    """Requests' contexts in pages, and queries at some of their tokens."""

    contexts: list[tuple[Tensor, Tensor]]
    positions: list[Tensor]
    tables: list[Tensor]
    cache: Tensor
    q: Tensor

    @classmethod
    def random(
        cls, mode: Mode, requests: list[tuple[int, int]], kv_heads: int, group: int, head_dim: int, page_size: int
    ) -> "Case":
        """requests: (tokens of the context, of which rows at most). The last token is a row."""
        contexts, positions = [], []
        for num_tokens, num_rows in requests:
            keys, values = torch.randn(2, num_tokens, kv_heads, head_dim).to(mode.dtype)
            contexts.append((keys, values))
            chosen = torch.randperm(num_tokens - 1)[: num_rows - 1]
            positions.append(torch.cat((chosen, torch.tensor([num_tokens - 1]))).sort().values)
        tables = page_tables([len(keys) for keys, _ in contexts], page_size)
        cache = paged_cache(mode.order, contexts, tables, page_size, behind=LARGE)
        wide = torch.randn(sum(map(len, positions)), (group + 2) * kv_heads, head_dim).to(mode.dtype) * 2
        return cls(contexts, positions, tables, cache, wide[:, kv_heads : (group + 1) * kv_heads])

    def ours(self, kernels: HostKernels, mode: Mode, spec: AttentionSpec) -> Tensor:
        pages = host_pages(mode.order, self.cache)
        assert pages is not None
        rows = Rows.of(self.positions, self.tables)
        with unwritten_shows():
            return attend(mode.of(kernels), pages, self.cache, spec, self.q, rows)

    def expected(self, spec: AttentionSpec) -> Tensor:
        """In fp32, of the same numbers."""
        parts, first = [], 0
        for (keys, values), positions in zip(self.contexts, self.positions, strict=True):
            q = self.q[first : first + len(positions)].contiguous().float()
            parts.append(causal_attention(spec, q, keys.float(), values.float(), positions))
            first += len(positions)
        return torch.cat(parts)

    def bound(self, mode: Mode, spec: AttentionSpec) -> float:
        return mode.tolerance(spec) * max(float(values.float().norm(dim=-1).max()) for _, values in self.contexts)


@pytest.mark.parametrize("mode", MODES, ids=str)
@settings(max_examples=100)
@example([(700, 130), (1, 1), (129, 63)], 2, 6, 64, 32, 100, 30.0, 0)
@example([(640, 130), (256, 130)], 1, 8, 256, 128, None, None, 0)  # contexts of whole tiles, a group's block of few
@example([(699, 7)], 3, 1, 80, 64, 1, None, 0)
@given(
    requests=st.lists(st.tuples(st.integers(1, 700), st.sampled_from(NUM_ROWS)), min_size=1, max_size=4),
    kv_heads=st.integers(1, 3),
    group=st.sampled_from([1, 3, 6, 8]),
    head_dim=st.sampled_from([32, 64, 80, 128, 256]),
    page_size=st.sampled_from([32, 64, 128]),
    window=st.sampled_from([None, None, 1, 5, 100, 1000]),
    soft_cap=st.sampled_from([None, None, 5.0, 30.0]),
    seed=st.integers(0, 999),
)
def test_attend(
    kernels: HostKernels,
    mode: Mode,
    requests: list[tuple[int, int]],
    kv_heads: int,
    group: int,
    head_dim: int,
    page_size: int,
    window: int | None,
    soft_cap: float | None,
    seed: int,
) -> None:
    """Reference: `causal_attention` in fp32, a request at a time. Ours: `attend`, all requests over their pages."""
    torch.manual_seed(seed)
    spec = AttentionSpec(head_dim**-0.5, window, soft_cap)
    case = Case.random(mode, requests, kv_heads, group, head_dim, page_size)
    before = case.cache.clone()
    out = case.ours(kernels, mode, spec)
    assert out.dtype == mode.dtype and out.is_contiguous()
    assert_near(out, case.expected(spec), bound=case.bound(mode, spec))
    assert torch.equal(case.cache, before)


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("window", [None, 100])
def test_one_key_of_another_token(kernels: HostKernels, mode: Mode, window: int | None) -> None:
    """Reference: one token's key is its neighbour's. Ours: as it was. Rows that see it move, no others do."""
    torch.manual_seed(0)
    spec = AttentionSpec(0.125, window)
    case = Case.random(mode, [(300, 130)], 2, 3, 64, 32)
    right, bound = case.ours(kernels, mode, spec), case.bound(mode, spec)
    keys = case.contexts[0][0]
    keys[150] = keys[151]
    case.cache = paged_cache(mode.order, case.contexts, case.tables, 32, behind=LARGE)
    moved = (case.ours(kernels, mode, spec).float() - right.float()).abs().amax((1, 2))
    seeing = case.positions[0] >= 150
    if window is not None:
        seeing &= case.positions[0] < 150 + window
    assert not bool(moved[~seeing].any()) and bool(moved[seeing].any())
    with pytest.raises(AssertionError, match="from what is expected"):
        assert_near(right, case.expected(spec), bound=bound)


def test_several_threads(kernels: HostKernels) -> None:
    """Reference: one thread. Ours: three, which share heads and blocks of rows, to the bit."""
    torch.manual_seed(0)
    case = Case.random(MODES[0], [(700, 130), (333, 130), (5, 1)], 2, 3, 64, 32)
    num_threads, outs = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            outs.append(case.ours(kernels, MODES[0], AttentionSpec(0.125)))
    finally:
        torch.set_num_threads(num_threads)
    assert torch.equal(*outs)
