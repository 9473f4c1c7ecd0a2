"""Blends in the caches of vLLM's CUDA backends: by the references here, by the kernels in test_interpreted."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.v1.kv_cache_layout import KVCacheLayout

from kvblend.blend.hf import HuggingFaceModel, prefill
from kvblend.blend.selectors.lab import Computed
from kvblend.core.plan import ContextPlan, Cut, EncodeOrder, Span
from kvblend.vllm_connector.metadata import EncodeTask
from kvblend.vllm_connector.worker.encodes import Encode
from tests.blend.paged.paged_models import make_model
from tests.tolerances import Tolerances
from tests.vllm_connector.worker.backend_blends import BLOCK, Engine, Library, tokens

PASSAGES = [tokens(100, 21), tokens(200, 33), tokens(300, 18), tokens(400, 26)]
QUESTION = tokens(500, 6)
CASES = [
    ("Llama", "FlashAttention", KVCacheLayout.LBNHC, None),
    ("Gemma2", "FlashInfer", KVCacheLayout.BLHNC, None),
    ("Llama", "FlashInfer", KVCacheLayout.LBHNC, 8),
    ("Gemma2", "Triton", KVCacheLayout.LHBNC, None),
]
"""Model, backend, layout, and the backend's pages where they are smaller than vLLM's blocks. Gemma2 has sliding windows
in every other layer, and so a KV cache group with null blocks."""
MakeEngine = Callable[..., Engine]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}-{case[2].name}")
def case(request: pytest.FixtureRequest, dtype: str) -> tuple[HuggingFaceModel, MakeEngine]:
    """The model, and what makes an engine over a library."""
    name, backend, layout, pages = request.param
    model = cached_model(name, getattr(torch, dtype))

    def engine(library: Library, *, paged: bool = True, **options: Any) -> Engine:
        return Engine(model, library, backend, layout, paged=paged, pages=pages, **options)

    return model, engine


@cache
def cached_model(name: str, dtype: torch.dtype) -> HuggingFaceModel:
    return make_model(name, dtype)


Close = Callable[[Tensor, Tensor], None]


@pytest.fixture
def close(tolerances: Tolerances) -> Close:
    """Holds each token's key and value in each head to another's, which is NaN where it is."""

    def hold(ours: Tensor, reference: Tensor) -> None:
        assert torch.equal(ours.isnan(), reference.isnan())
        deviation = (ours - reference).nan_to_num().norm(dim=-1)
        assert (deviation / reference.nan_to_num(1.0).norm(dim=-1)).max() < tolerances.kv_vector

    return hold


def test_everything_recomputed(case: tuple[HuggingFaceModel, MakeEngine], tmp_path: Path, close: Close) -> None:
    """Reference: full prefill. Ours: two requests at ratio 1, one behind a local hit, in several steps."""
    model, make_engine = case
    library = Library(model, tmp_path)
    for passage in PASSAGES:
        library.add(passage)
    engine = make_engine(library)
    first, second = PASSAGES[:2], PASSAGES[1:]
    prompts = [library.prompt(own, QUESTION) for own in (first, second)]
    hit = BLOCK if engine.has_windows else 2 * BLOCK  # of the preamble, and of more where it keeps its blocks
    tasks = [
        engine.add("first", library.plan(first, 1.0), prompts[0], start=hit),
        engine.add("second", library.plan(second, 1.0), prompts[1]),
    ]
    reports, steps = engine.run()
    assert steps > 2
    for task, prompt in zip(tasks, prompts, strict=True):
        whole = prefill(model, prompt)[0].data[:, :, : task.plan.num_tokens]
        ours = engine.read(task)
        close(ours, torch.where(ours.isnan(), ours, whole.to(ours.dtype)))
        assert bool(ours[:, :, -BLOCK:].isfinite().all())
    assert reports["first"].exact_tokens == max(hit, len(library.preamble))
    assert reports["second"].recomputed_tokens == sum(map(len, second)) and reports["second"].tiers == {"disk": 77}


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_parts_of_passages(
    case: tuple[HuggingFaceModel, MakeEngine], tmp_path: Path, ratio: float, close: Close
) -> None:
    """Reference: at ratio 0 the same part of the passage's own KV, turned; at 1 full prefill. Ours: in blocks."""
    model, make_engine = case
    library = Library(model, tmp_path)
    spans, prompt, places = [Span(kind="exact", num_tokens=len(library.preamble))], list(library.preamble), []
    for passage, (before, after) in zip(PASSAGES, [(0, 3), (30, 0), (0, 0), (5, 7)], strict=True):
        library.add(passage)
        part, between = passage[before : len(passage) - after], tokens(before + 1, before % 7)
        cut = (
            Cut(before=tuple(passage[:before]), after=tuple(passage[len(part) + before :])) if before + after else None
        )
        spans += [Span(kind="fresh", num_tokens=len(between))] if between else []
        spans.append(Span(kind="passage", num_tokens=len(part), encode_contexts=(library.encode_context,), cut=cut))
        prompt += between
        places.append((passage, before, len(prompt), len(prompt) + len(part)))
        prompt += part
    engine = make_engine(library)
    prompt += QUESTION
    task = engine.add("parts", ContextPlan(spans=tuple(spans), recompute_ratio=ratio), prompt)
    report = engine.run()[0]["parts"]
    ours = engine.read(task)
    assert report.missed_passages == 0 and report.tiers == {"disk": sum(end - start for *_, start, end in places)}
    assert [(own.start, own.start + own.num_tokens) for own in report.passages] == [own[2:] for own in places]
    whole = prefill(model, prompt)[0].data[:, :, : task.plan.num_tokens]
    if ratio == 1.0:
        close(ours, torch.where(ours.isnan(), ours, whole.to(ours.dtype)))
        return
    for passage, before, start, end in places:
        kv = library.moved(passage, to=start - before)[:, :, before : before + end - start].to(ours.dtype)
        close(ours[:, :, start:end], torch.where(ours[:, :, start:end].isnan(), torch.nan, kv))
        assert not torch.allclose(kv, whole[:, :, start:end].to(kv.dtype), atol=0.01)


@pytest.mark.parametrize("ratio", [0.0, 0.3])
def test_what_a_dense_blend_gives(
    case: tuple[HuggingFaceModel, MakeEngine], tmp_path: Path, ratio: float, close: Close, tolerances: Tolerances
) -> None:
    """Reference: plain PyTorch on a dense copy. Ours: in blocks; lost, cut and flipped files; a fresh span; local hits.

    Then once more, from a GPU tier.
    """
    model, make_engine = case
    first, second, third = [PASSAGES[0], PASSAGES[2], PASSAGES[1]], [PASSAGES[3], PASSAGES[1]], [PASSAGES[1]]
    results: dict[bool, list[Tensor]] = {}
    counts: dict[bool, list[dict[str, object]]] = {}
    selected: dict[str, Tensor] = {}
    for paged in (False, True):
        library = Library(model, tmp_path / str(paged), gpu_bytes=1 << 22 if paged else 0)
        files = [library.add(passage) for passage in PASSAGES]
        files[0].unlink()
        content = bytearray(files[3].read_bytes())
        content[-5] ^= 1  # in the last layer
        files[3].chmod(0o600)
        files[3].write_bytes(content)
        engine = make_engine(library, paged=paged, selected=selected, score_tie=tolerances.score_tie)
        tasks = []
        for index, (own, num_fresh, start) in enumerate([(first, 5, BLOCK), (second, 0, 0), (third, 0, BLOCK)]):
            plan = library.plan(own, ratio, num_fresh=num_fresh)
            prompt = library.prompt(own, QUESTION, num_fresh=num_fresh)
            tasks.append(engine.add(str(index), plan, prompt, start=start))
        reports, _ = engine.run()
        results[paged] = [engine.read(task) for task in tasks]
        told_apart = {"steps_ms", "tiers", "passages"}
        counts[paged] = [reports[task.request_id].model_dump(exclude=told_apart) for task in tasks]
        assert reports["1"].missed_passages == 1 and reports["0"].missed_passages == 1
        context = library.encode_context
        assert [own.encode_context for own in reports["0"].passages] == [None, context, context]
        if paged:
            again = engine.add("again", tasks[2].plan, tasks[2].token_ids)
            assert engine.run()[0]["again"].tiers == {"gpu": 33}
            close(engine.read(again)[:, :, 2 * BLOCK :], results[True][2][:, :, 2 * BLOCK :])
    assert counts[True] == counts[False]
    for ours, reference in zip(results[True], results[False], strict=True):
        close(ours, reference)
    assert all(bool(own[:, :, -BLOCK:].isfinite().all()) for own in results[True])


@pytest.mark.parametrize(("ratio", "num_probes"), [(0.0, 0), (0.3, 1), (1.0, 0)])
def test_counted_flops(
    case: tuple[HuggingFaceModel, MakeEngine], tmp_path: Path, ratio: float, num_probes: int
) -> None:
    """Reference: the lab's count, for the tokens whose fate says so. Ours: the report's; five tokens are fresh."""
    model, make_engine = case
    library = Library(model, tmp_path)
    for passage in PASSAGES[:2]:
        library.add(passage)
    plan = library.plan(PASSAGES[:2], ratio, num_fresh=5)
    prompt = library.prompt(PASSAGES[:2], QUESTION, num_fresh=5)
    engine = make_engine(library)
    engine.add("one", plan, prompt, report_tokens=True)
    (report,) = engine.run()[0].values()
    assert report.tokens is not None and report.flops is not None
    fates = [fate for fate, count in report.tokens.fates for _ in range(count)]
    positions = torch.tensor([place for place, fate in enumerate(fates) if fate in ("recomputed", "fresh")])
    computed = Computed.everywhere(positions, num_layers=model.num_layers, num_probes=num_probes)
    assert report.flops.computed == model.flops.blend(computed, torch.arange(len(fates), len(prompt)))
    assert report.flops.full_prefill == model.flops.full_prefill(torch.arange(len(prompt)))


def test_of_several_encode_contexts_the_first_that_is_stored_is_used(
    case: tuple[HuggingFaceModel, MakeEngine], tmp_path: Path, close: Close
) -> None:
    """A damaged file of a better one is passed over, too. What stands behind what it was encoded behind is exact."""
    model, make_engine = case
    library = Library(model, tmp_path)
    own, better, missing = library.encode_context, library.add_behind_preamble(PASSAGES[1]), "0" * 64
    library.add(PASSAGES[1])
    prompt, (exact, passage) = library.prompt([PASSAGES[1]], QUESTION), library.plan([PASSAGES[1]], 0.0).spans
    results = {}
    for name, contexts in {"better": (missing, better, own), "own": (own, better), "none": (missing,)}.items():
        span = passage.model_copy(update={"encode_contexts": contexts})
        engine = make_engine(library)
        task = engine.add(name, ContextPlan(spans=(exact, span), recompute_ratio=0.0), prompt)
        (report,) = engine.run()[0].values()
        results[name] = report, engine.read(task)
    assert [report.passages[0].encode_context for report, _ in results.values()] == [better, own, None]
    assert [report.passages[0].exact for report, _ in results.values()] == [True, False, False]
    assert [report.recomputed_tokens for report, _ in results.values()] == [0, 0, len(PASSAGES[1])]
    assert results["better"][0].exact_tokens == len(library.preamble) + len(PASSAGES[1])
    close(results["better"][1], results["none"][1])


@pytest.mark.parametrize("first_share", [0.0, 1.0])
def test_a_passage_that_fits_better_is_repaired_less(
    case: tuple[HuggingFaceModel, MakeEngine], tmp_path: Path, first_share: float
) -> None:
    """Each has its own share of the budget, which goes where scores, weighed by the shares, are highest; nothing of a
    passage whose share is 0, and all of one whose share is 1, whatever the others' scores are."""
    model, make_engine = case
    library = Library(model, tmp_path)
    passages = PASSAGES[:3]
    for passage in passages:
        library.add(passage)
    exact, *spans = library.plan(passages, 1.0).spans
    shares = (first_share, 0.4, 0.2)
    spans = [span.model_copy(update={"recompute_ratios": (share,)}) for span, share in zip(spans, shares, strict=True)]
    selected: dict[str, Tensor] = {}
    engine = make_engine(library, selected=selected, score_tie=0.0)
    plan = ContextPlan(spans=(exact, *spans), recompute_ratio=0.5)
    engine.add("one", plan, library.prompt(passages, QUESTION))
    (report,) = engine.run()[0].values()
    assert [passage.recompute_ratio for passage in report.passages] == list(shares)
    budget = sum(share * len(passage) for share, passage in zip(shares[1:], passages[1:], strict=True))
    num_first = int(first_share * len(passages[0]))
    assert len(selected["one"]) == round(budget)
    assert report.selected_tokens == report.recomputed_tokens == num_first + round(budget)
    first = range(exact.num_tokens, exact.num_tokens + len(passages[0]))
    assert not set(selected["one"].tolist()).intersection(first)


def test_a_hit_that_windows_have_emptied(case: tuple[HuggingFaceModel, MakeEngine], tmp_path: Path) -> None:
    """Only the preamble can be brought back; a longer hit, or one without a stored preamble, is vLLM's to prefill."""
    model, make_engine = case
    library = Library(model, tmp_path)
    library.add(PASSAGES[1])
    prompt, plan = library.prompt([PASSAGES[1]], QUESTION), library.plan([PASSAGES[1]], 1.0)
    long_prompt, long_plan = library.prompt(PASSAGES[:3], QUESTION), library.plan(PASSAGES[:3], 1.0)
    engine = make_engine(library)
    if not engine.has_windows:
        return
    for index, (own_plan, own_prompt, start) in enumerate([(long_plan, long_prompt, 3 * BLOCK), (plan, prompt, BLOCK)]):
        if index == 1:
            library.drop_preamble()
        engine.add(str(index), own_plan, own_prompt, start=start)
        for _ in range(2):
            engine.step()
    engine.step()
    assert len(engine.blends) == 0 and engine.blends.finished == {"0", "1"}
    assert "the first 48 tokens of a local hit of 48 lie in blocks that a sliding window" in engine.blends.failed["0"]
    assert "lost tokens of the preamble, whose KV is not in the store" in engine.blends.failed["1"]


def test_a_context_over_the_scratch_pages(case: tuple[HuggingFaceModel, MakeEngine], tmp_path: Path) -> None:
    """It is vLLM's to prefill, and says why; one that fits is blended all the same."""
    model, make_engine = case
    library = Library(model, tmp_path)
    library.add(PASSAGES[1])
    fits, too_long = library.plan([PASSAGES[1]], 0.3), library.plan(PASSAGES[:3], 0.3)
    engine = make_engine(library, scratch_tokens=fits.num_tokens)
    if not engine.has_windows:
        return
    engine.add("long", too_long, library.prompt(PASSAGES[:3], QUESTION))
    engine.add("fits", fits, library.prompt([PASSAGES[1]], QUESTION))
    while len(engine.blends):
        engine.step()
    assert engine.blends.finished == {"long", "fits"} and set(engine.blends.failed) == {"long"}
    assert f"a context of {too_long.num_tokens} tokens is over the" in engine.blends.failed["long"]


def test_encodes_across_steps(case: tuple[HuggingFaceModel, MakeEngine], tmp_path: Path) -> None:
    """Reference: what was written to the blocks. Ours: gathered in two steps, one launch for a group of layers each."""
    model, make_engine = case
    library = Library(model, tmp_path)
    engine = make_engine(library)
    num_groups = len({layer.group for layer in engine.caches.layers})
    assert engine.caches.groups is not None and len(engine.caches.groups) == num_groups
    block_ids = tuple([5 + group, 9 + group, 20 + group] for group in range(num_groups))
    kv = torch.randn(engine.caches.kv_shape(3 * BLOCK), dtype=engine.caches.dtype)
    for layer, (keys, values) in zip(engine.caches.layers, kv, strict=True):
        layer.write(block_ids[layer.group], 0, keys, values)
    order, prompt = EncodeOrder(spans=((0, 4), (7, 43), (43, 45))), tokens(0, 45)
    encode = Encode(order, engine.caches)
    first = encode.take(EncodeTask("encode", order, prompt, 0, 30, block_ids))
    assert [span for span, _ in first] == [(0, 4)] and not encode.complete
    assert encode.take(EncodeTask("encode", order, prompt, 0, 30, block_ids)) == []  # as after a preemption
    whole = first + encode.take(EncodeTask("encode", order, prompt, 30, 45, block_ids))
    assert encode.complete and [span for span, _ in whole] == list(order.spans)
    for (start, end), own in whole:
        assert torch.equal(own, kv[:, :, start:end])
