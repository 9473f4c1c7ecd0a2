"""Run under TRITON_INTERPRET=1 by test_kernels: the attention kernels and kv_deviation against their references."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from kvblend.triton_kernels import (
    AttentionSpec,
    PagedKV,
    ProbedContext,
    Queries,
    kv_deviation,
    probe_scores,
    selective_attention,
    write_kv,
)
from kvblend.triton_kernels.kv_deviation import kv_deviation_reference
from kvblend.triton_kernels.probe_scores import launches as probe_launches
from kvblend.triton_kernels.probe_scores import probe_scores_reference
from kvblend.triton_kernels.selective_attention import selective_attention_reference
from kvblend.triton_kernels.write_kv import write_kv_reference
from tests.triton_kernels.paged_samples import block_tables, fill, paged_cache, slots_of

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
TOLERANCE = {BF16: 1.6e-2, FP16: 2e-3, FP32: 2e-5}


@dataclass(frozen=True)
class Case:
    layout: str
    lengths: tuple[int, ...]
    block_size: int
    kv_heads: int
    group: int
    head_dim: int
    dtype: torch.dtype
    parts: int = 1
    window: int | None = None
    soft_cap: float | None = None
    sinks: bool = False
    share: float = 0.3
    """Of the tokens, how many are queries (selective_attention) or readable (probe_scores)."""


CASES = [
    Case("joined", (1, 63), 16, 2, 4, 64, BF16),
    Case("split", (423,), 32, 1, 1, 128, FP16, parts=3, share=0.15),
    Case("joined, tokens first", (63, 0, 200), 128, 2, 3, 80, FP32, window=50),
    Case("keys transposed", (130, 1), 32, 1, 8, 96, BF16, parts=2, soft_cap=20.0, share=1.0),
    Case("split, heads first", (63, 64), 16, 1, 4, 256, FP16, sinks=True),
    Case("joined", (200, 33), 16, 1, 8, 64, FP32, parts=4, window=7, sinks=True, share=1.0),
    Case("joined", (423,), 128, 1, 3, 128, BF16, parts=5, soft_cap=5.0, sinks=True, share=0.6),
]


def sample(case: Case) -> tuple[PagedKV, Tensor, AttentionSpec]:
    torch.manual_seed(0)
    tables, blocks = block_tables(list(case.lengths), case.block_size)
    cache = paged_cache(case.layout, blocks, case.block_size, case.kv_heads, case.head_dim, case.dtype)
    sinks = torch.randn(case.kv_heads * case.group) if case.sinks else None
    return cache, tables, AttentionSpec(case.head_dim**-0.5, case.window, case.soft_cap, sinks)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_selective_attention(case: Case) -> None:
    """Reference: the PyTorch specification. Ours: the kernel, over blocks full of NaN where no query may read."""
    cache, tables, spec = sample(case)
    positions = []
    for row, length in enumerate(case.lengths):
        own = torch.rand(length).lt(case.share).nonzero()[:, 0]
        own = own if len(own) or not length else torch.tensor([length - 1])
        positions.append(own)
        readable = torch.arange(int(own[-1]) + 1 if len(own) else 0)
        if case.window is not None and len(own):
            readable = readable[max(0, int(own[0]) + 1 - case.window) :]
        fill(cache, slots_of(tables[row], length, case.block_size)[readable])
    queries = Queries.of(positions)
    q = torch.randn(sum(queries.lengths), case.kv_heads * case.group, case.head_dim).to(case.dtype)
    expected, _ = selective_attention_reference(q, queries, cache, tables, spec)
    out = selective_attention(q, queries, cache, tables, spec, num_parts=case.parts)
    assert expected.isfinite().all()
    torch.testing.assert_close(out, expected, atol=TOLERANCE[case.dtype], rtol=TOLERANCE[case.dtype])


@pytest.mark.parametrize("all_readable", [True, False], ids=["readable", "partly readable"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_probe_scores(case: Case, all_readable: bool) -> None:
    """Reference: the PyTorch specification. Ours: the kernels, over NaN where a token is not readable."""
    cache, tables, spec = sample(case)
    question_lengths = [(9, 1, 33)[row] for row in range(len(case.lengths))]
    queries = Queries.of(
        [torch.arange(length, length + own) for length, own in zip(case.lengths, question_lengths, strict=True)]
    )
    readable = torch.rand(sum(case.lengths)) < (2.0 if all_readable else case.share)
    start = 0
    for row, length in enumerate(case.lengths):
        fill(cache, slots_of(tables[row], length, case.block_size)[readable[start : start + length]])
        start += length
    context = ProbedContext.of(case.lengths, readable=None if all_readable else readable)
    q = torch.randn(sum(question_lengths), case.kv_heads * case.group, case.head_dim).to(case.dtype)
    own_keys, own_values = torch.randn(2, sum(question_lengths), case.kv_heads, case.head_dim).to(case.dtype)
    expected_scores = torch.ones(case.kv_heads, sum(case.lengths))
    scores = expected_scores.clone()
    expected = probe_scores_reference(q, own_keys, own_values, queries, cache, tables, context, spec, expected_scores)
    out, scored = probe_scores(
        q, own_keys, own_values, queries, cache, tables, context, spec, scores=scores, num_parts=case.parts
    )
    assert scored is scores and expected.isfinite().all()
    torch.testing.assert_close(out, expected, atol=TOLERANCE[case.dtype], rtol=TOLERANCE[case.dtype])
    torch.testing.assert_close(scores, expected_scores, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("case", CASES[:3:2], ids=str)
def test_probe_scores_on_an_older_gpu(case: Case) -> None:
    """As above, by what an sm_80 would be given."""
    cache, tables, spec = sample(case)
    queries = Queries.of([torch.arange(length, length + 5) for length in case.lengths])
    for row, length in enumerate(case.lengths):
        fill(cache, slots_of(tables[row], length, case.block_size))
    context, scores = ProbedContext.of(case.lengths), torch.zeros(case.kv_heads, sum(case.lengths))
    q = torch.randn(sum(queries.lengths), case.kv_heads * case.group, case.head_dim).to(case.dtype)
    own = torch.randn(sum(queries.lengths), case.kv_heads, case.head_dim).to(case.dtype)
    expected_scores = scores.clone()
    expected = probe_scores_reference(q, own, own, queries, cache, tables, context, spec, expected_scores)
    plan, parts = probe_launches(
        q, own, own, queries, cache, tables, context, spec, scores=scores, num_parts=2, capability=80
    )
    for launch in plan:
        launch.run()
    torch.testing.assert_close(parts.out, expected, atol=TOLERANCE[case.dtype], rtol=TOLERANCE[case.dtype])
    torch.testing.assert_close(scores, expected_scores, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("case", CASES[:6], ids=str)
def test_kv_deviation(case: Case) -> None:
    cache, tables, _ = sample(case)
    slots = torch.cat([slots_of(tables[row], length, case.block_size) for row, length in enumerate(case.lengths)])
    fill(cache, slots)
    slots[len(slots) // 2] = -1
    fresh = torch.randn(len(slots), case.kv_heads, case.head_dim).to(case.dtype)
    for view in (cache.keys, cache.values):
        torch.testing.assert_close(
            kv_deviation(fresh, view, slots), kv_deviation_reference(fresh, view, slots), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("case", CASES[:6], ids=str)
def test_write_kv(case: Case) -> None:
    """Reference: the PyTorch specification. Ours: the kernel, from strided tokens; two of them go nowhere."""
    cache, tables, _ = sample(case)
    other, _, _ = sample(case)
    slots = torch.cat([slots_of(tables[row], length, case.block_size) for row, length in enumerate(case.lengths)])
    slots[0], slots[len(slots) // 2] = -1, case.block_size - 1
    joined = torch.randn(len(slots), 2 * case.kv_heads, case.head_dim).to(case.dtype)
    keys, values = joined.chunk(2, dim=1)
    values = values.transpose(0, 1).contiguous().transpose(0, 1)
    write_kv(keys, values, cache, slots)
    write_kv_reference(keys, values, other, slots)
    for ours, theirs in ((cache.keys, other.keys), (cache.values, other.values)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    assert bool(cache.keys[0].isnan().all())
