"""A question's attention over a context in pages and itself, and what it gives each token, against plain PyTorch."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvblend.blend.attention import scored_attention
from kvblend.host_kernels import HostKernels, probe
from kvblend.triton_kernels import AttentionSpec
from tests.host_kernels.attention_modes import MODES, Mode, assert_near, unwritten_shows
from tests.host_kernels.paged_caches import host_pages, page_tables, paged_cache

LARGEST = 3e38
"""Of bf16 and fp32 numbers, about: what the pages of missing tokens hold."""


@dataclass
class Case:
    """A context in pages, some of it missing, and a question behind it."""

    keys: Tensor
    values: Tensor
    readable: Tensor
    table: Tensor
    cache: Tensor
    question: tuple[Tensor, Tensor, Tensor]
    positions: Tensor
    scores: Tensor

    @classmethod
    def random(
        cls,
        mode: Mode,
        *,
        num_context: int,
        num_question: int,
        kv_heads: int,
        group: int,
        head_dim: int,
        page_size: int,
        missing: float,
    ) -> "Case":
        """missing: the share of tokens, in runs and one by one."""
        keys, values = torch.randn(2, num_context, kv_heads, head_dim).to(mode.dtype)
        readable = torch.rand(num_context) >= missing / 2
        for run in torch.split(readable, 150):
            run &= bool(torch.rand(()) >= missing / 2)
        stored = [half.masked_fill(~readable[:, None, None], LARGEST) for half in (keys, values)]
        (table,) = page_tables([num_context], page_size)
        cache = paged_cache(mode.order, [(stored[0], stored[1])], [table], page_size, behind=LARGEST)
        wide = torch.randn(num_question, (group + 2) * kv_heads, head_dim).to(mode.dtype)  # as a model computes them
        q, own_keys, own_values = torch.split(wide, [group * kv_heads, kv_heads, kv_heads], 1)
        positions = torch.arange(num_context, num_context + num_question)
        return cls(keys, values, readable, table, cache, (q, own_keys, own_values), positions, torch.rand(num_context))

    def ours(self, kernels: HostKernels, mode: Mode, spec: AttentionSpec) -> tuple[Tensor, Tensor]:
        """Output, and scores besides those that were there."""
        pages = host_pages(mode.order, self.cache)
        assert pages is not None
        scores = self.scores.clone()
        with unwritten_shows():
            out = probe(
                mode.of(kernels),
                pages,
                self.cache,
                spec,
                *self.question,
                positions=self.positions.int(),
                table=self.table,
                readable=self.readable,
                scores=scores,
            )
        assert torch.equal(scores[~self.readable], self.scores[~self.readable])
        return out, scores - self.scores

    def expected(self, spec: AttentionSpec) -> tuple[Tensor, Tensor]:
        """In fp32, of the same numbers."""
        seen = self.readable.nonzero()[:, 0]
        q, own_keys, own_values = (part.float() for part in self.question)
        keys, values = (
            torch.cat((self.keys[seen].float(), own_keys)),
            torch.cat((self.values[seen].float(), own_values)),
        )
        k_positions = torch.cat((seen, self.positions))
        out, own_scores = scored_attention(spec, q.contiguous(), keys, values, self.positions, k_positions)
        scores = torch.zeros(len(self.readable))
        scores[seen] = own_scores[: len(seen)]
        return out, scores

    def check(self, kernels: HostKernels, mode: Mode, spec: AttentionSpec) -> None:
        (out, scores), (expected, expected_scores) = self.ours(kernels, mode, spec), self.expected(spec)
        assert out.dtype == mode.dtype and out.is_contiguous()
        norms = torch.cat((self.values, self.question[2])).float().norm(dim=-1)
        assert_near(out, expected, bound=mode.tolerance(spec) * float(norms.max()))
        rounding = 2e-6 * float(self.scores.max())  # of what was there, where little is added
        bound = mode.score_tolerance(spec) * expected_scores + rounding
        assert_near((scores - expected_scores) / bound, torch.zeros_like(scores), bound=1.0)


@pytest.mark.parametrize("mode", MODES, ids=str)
@settings(max_examples=50)
@example(1400, 150, 1, 3, 64, 32, None, None, 0.3, 0)  # several chunks of a head's context
@example(256, 256, 2, 8, 64, 64, 100, 30.0, 0.0, 0)  # whole tiles; question tokens that see none of it
@example(130, 25, 3, 1, 256, 128, None, 5.0, 2.0, 0)  # all missing
@example(1, 1, 1, 1, 32, 32, 1, None, 0.0, 0)
@given(
    num_context=st.integers(1, 700),
    num_question=st.sampled_from([1, 25, 150, 256]),
    kv_heads=st.integers(1, 3),
    group=st.sampled_from([1, 3, 6, 8]),
    head_dim=st.sampled_from([32, 64, 80, 128]),
    page_size=st.sampled_from([32, 64, 128]),
    window=st.sampled_from([None, None, 1, 5, 100, 1000]),
    soft_cap=st.sampled_from([None, None, 5.0, 30.0]),
    missing=st.sampled_from([0.0, 0.1, 0.5]),
    seed=st.integers(0, 999),
)
def test_probe(
    kernels: HostKernels,
    mode: Mode,
    num_context: int,
    num_question: int,
    kv_heads: int,
    group: int,
    head_dim: int,
    page_size: int,
    window: int | None,
    soft_cap: float | None,
    missing: float,
    seed: int,
) -> None:
    """Reference: `scored_attention` in fp32 over the tokens that are there. Ours: `probe`, over pages with gaps."""
    torch.manual_seed(seed)
    case = Case.random(
        mode,
        num_context=num_context,
        num_question=num_question,
        kv_heads=kv_heads,
        group=group,
        head_dim=head_dim,
        page_size=page_size,
        missing=missing,
    )
    before = case.cache.clone()
    case.check(kernels, mode, AttentionSpec(head_dim**-0.5, window, soft_cap))
    assert torch.equal(case.cache, before)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads(kernels: HostKernels, num_threads: int) -> None:
    """Reference: `scored_attention`. Ours: `probe` with chunks for as many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        torch.manual_seed(0)
        sizes = {"num_context": 2200, "num_question": 25, "kv_heads": 2, "group": 3, "head_dim": 64, "page_size": 32}
        case = Case.random(MODES[0], **sizes, missing=0.2)
        case.check(kernels, MODES[0], AttentionSpec(0.125))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("changed", ["key", "value", "readable", "window"])
def test_what_moves_it(kernels: HostKernels, mode: Mode, changed: str) -> None:
    """Reference: one token's key or value doubled, one more missing, a window one shorter. Ours: as it was."""
    torch.manual_seed(0)
    spec = AttentionSpec(0.125, 300)
    sizes = {"num_context": 200, "num_question": 25, "kv_heads": 2, "group": 3, "head_dim": 64, "page_size": 32}
    case = Case.random(mode, **sizes, missing=0.0)
    case.check(kernels, mode, spec)
    ours = case.ours(kernels, mode, spec)
    if changed in ("key", "value"):
        (case.keys if changed == "key" else case.values)[123] *= 2
    elif changed == "readable":
        case.readable[123] = False
    else:
        case.positions += 100  # of the reference: it sees 100 fewer
    expected, expected_scores = case.expected(spec)
    norm = float(case.values.float().norm(dim=-1).max())
    with pytest.raises(AssertionError, match="from what is expected"):
        assert_near(ours[0], expected, bound=mode.tolerance(spec) * norm)
    with pytest.raises(AssertionError, match="from what is expected"):
        assert_near(ours[1], expected_scores, bound=mode.score_tolerance(spec) * float(expected_scores.max()))
