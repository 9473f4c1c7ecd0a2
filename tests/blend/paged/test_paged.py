"""Paged contexts against dense ones: by the references here, by the kernels in test_interpreted."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from kvblend.blend import DenseContextKV, Rows, probe, repair
from kvblend.blend.hf import PassageEncoder, extend, prefill, repair_with_question
from kvblend.blend.paged import PagedContextKV, PassageLoad, PlacedPassage
from kvblend.triton_kernels import Codec, Queries, StagedPassage, selective_attention
from kvblend.triton_kernels.codecs import dequantize, quantize
from tests.blend.paged.paged_models import (
    LAYOUTS,
    MODELS,
    make_model,
    paged_context,
    random_context,
    read_paged,
    tables_of,
    vacant_caches,
)

CONTEXTS, QUESTIONS, NUM_BLOCKS = [45, 33, 70], [5, 1, 9], 16


@pytest.mark.parametrize(("name", "layout"), [(name, layout) for name in MODELS for layout in LAYOUTS][::2])
def test_probe_and_repair(name: str, layout: str) -> None:
    """Reference: dense contexts. Ours: ragged requests in blocks that differ by layer, NaN where nothing is."""
    model = make_model(name)
    caches = vacant_caches(model, layout, NUM_BLOCKS)
    dense, paged = list[DenseContextKV](), list[PagedContextKV]()
    kinds: list[Sequence[DenseContextKV | PagedContextKV]] = [dense, paged]
    for num_tokens, tables in zip(CONTEXTS, tables_of(CONTEXTS), strict=True):
        readable = torch.ones(num_tokens, dtype=torch.bool)
        readable[num_tokens // 3 : num_tokens // 2] = num_tokens == CONTEXTS[1]
        dense.append(random_context(model, num_tokens, readable))
        paged.append(paged_context(caches, dense[-1], tables))
    for contexts in kinds:
        questions = [
            Rows(context, torch.arange(own) + 3, torch.arange(num_tokens, num_tokens + own))
            for context, num_tokens, own in zip(contexts, CONTEXTS, QUESTIONS, strict=True)
        ]
        scores = probe(model, questions)
        if contexts is dense:
            expected = scores
        for ours, theirs in zip(scores, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        rows = []
        for context, num_tokens in zip(contexts, CONTEXTS, strict=True):
            chosen = torch.arange(num_tokens) % 5 == 1
            chosen |= ~context.readable
            positions = chosen.nonzero()[:, 0]
            rows.append(Rows(context, positions % 97, positions))
        repair(model, rows[:2])
        repair(model, rows[2:])
    for context, wanted, num_tokens in zip(paged, dense, CONTEXTS, strict=True):
        torch.testing.assert_close(read_paged(context, num_tokens), wanted.data, rtol=1e-4, atol=1e-4)
    for cache in caches.layers:
        assert bool(cache.keys[0].isnan().all()) and bool(cache.values[0].isnan().all())


@dataclass(frozen=True)
class Arrival:
    """Tells in which order the layers of passages are waited for."""

    index: int
    log: list[tuple[int, int]]

    def ready(self, layer: int) -> None:
        self.log.append((layer, self.index))


@pytest.mark.parametrize("name", MODELS)
def test_everything_recomputed(name: str) -> None:
    """Reference: full prefill. Ours: loaded layer by layer, probed, then all repaired, with the question."""
    model = make_model(name)
    prompt, starts, question = torch.arange(83) * 31 % 97, [0, 20, 61], 76
    whole, logits = prefill(model, prompt.tolist())
    caches = vacant_caches(model, "joined", NUM_BLOCKS)
    context = PagedContextKV(caches, tables_of([len(prompt)])[0], num_tokens=question)
    encoder = PassageEncoder(model, prompt[:9].tolist())
    placed, arrived = list[PlacedPassage](), list[tuple[int, int]]()
    for index, (start, end) in enumerate(zip(starts, [*starts[1:], question], strict=True)):
        kv = encoder.encode(prompt[start:end].tolist())
        staged = StagedPassage.raw(kv)
        placed.append(PlacedPassage(staged, context, start, start - 9, ready=Arrival(index, arrived).ready))
    load = PassageLoad(placed)
    asked = Rows(context, prompt[question:], torch.arange(question, len(prompt)))
    for layer in range(3):
        load.layer(layer)
    scores = probe(model, [asked])[0]
    assert arrived == [(layer, index) for layer in range(3) for index in range(3)]
    assert scores.isfinite().all() and len(scores) == question
    blended = repair_with_question(model, Rows(context, prompt, torch.arange(len(prompt))))
    torch.testing.assert_close(blended, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(read_paged(context, len(prompt)), whole.data, rtol=1e-3, atol=1e-4)

    selected = torch.arange(3, question, 4)
    PassageLoad(placed).all_layers()
    reused = read_paged(context, question)
    for passage, start, end in zip(placed, starts, [*starts[1:], question], strict=True):
        moved = passage.staged.payload.clone()
        model.rerotate(moved, delta=passage.delta)
        torch.testing.assert_close(reused[:, :, start:end], moved, rtol=1e-4, atol=1e-5)
    positions = torch.cat((selected, torch.arange(question, len(prompt))))
    together = repair_with_question(model, Rows(context, prompt[positions], positions))
    apart = random_context(model, len(prompt), torch.ones(len(prompt), dtype=torch.bool))
    apart.data[:, :, :question] = reused
    repair(model, [Rows(apart, prompt[selected], selected)])
    expected = extend(model, apart, prompt[question:].tolist(), start=question)
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-4)
    assert float((together - logits).abs().max()) > 0.1  # the negative control: a blend is not a full prefill


def test_codecs_and_local_hits() -> None:
    """Passages of several codecs and requests in one load; tokens that a context has already are left alone."""
    model = make_model("Llama")
    caches = vacant_caches(model, "split", NUM_BLOCKS)
    contexts = [PagedContextKV(caches, own, num_tokens=40) for own in tables_of([40, 40])]
    kv = torch.randn(3, 2, 20, model.num_kv_heads, model.head_dim)
    placed = []
    for codec, context in zip((Codec("int8", 8), Codec("int4", 4)), contexts, strict=True):
        placed.append(PlacedPassage(StagedPassage(*quantize(kv, codec), codec), context, 15, 7, skipped=2))
    load = PassageLoad(placed)
    for layer in range(3):
        load.layer(layer)
    for passage in placed:
        expected = dequantize(passage.staged.payload, passage.staged.scales, passage.staged.codec)
        model.rerotate(expected, delta=7)
        loaded = read_paged(passage.context, 40)
        torch.testing.assert_close(loaded[:, :, 17:35], expected[:, :, 2:], rtol=1e-4, atol=1e-5)
        assert bool(loaded[:, :, :17].isnan().all()) and bool(loaded[:, :, 35:].isnan().all())


def test_part_of_a_passage() -> None:
    """Its middle goes where it belongs; what is cut off would stand outside of the context."""
    model = make_model("Llama")
    caches = vacant_caches(model, "split", NUM_BLOCKS)
    context = PagedContextKV(caches, tables_of([20])[0], num_tokens=20)
    staged = StagedPassage.raw(torch.randn(3, 2, 40, model.num_kv_heads, model.head_dim))
    placed = PlacedPassage(staged, context, -5, 7, skipped=8, left_out=15)
    PassageLoad([placed]).all_layers()
    expected = staged.payload.clone()
    model.rerotate(expected, delta=7)
    loaded = read_paged(context, 20)
    torch.testing.assert_close(loaded[:, :, 3:20], expected[:, :, 8:25], rtol=1e-4, atol=1e-5)
    assert bool(loaded[:, :, :3].isnan().all())
    with pytest.raises(ValueError, match="passage 0 goes to tokens 3 to 21; its context has 20"):
        PassageLoad([PlacedPassage(staged, context, -5, 7, skipped=8, left_out=14)])
    with pytest.raises(ValueError, match="passage 0 goes to tokens -1 to 20; its context has 20"):
        PassageLoad([PlacedPassage(staged, context, -5, 7, skipped=4, left_out=15)])


def test_positions_nobody_looks_at() -> None:
    """As a selection on a GPU leaves them."""
    model = make_model("Llama")
    caches = vacant_caches(model, "joined", NUM_BLOCKS)
    dense = random_context(model, 45, torch.ones(45, dtype=torch.bool))
    context = paged_context(caches, dense, tables_of([45])[0])
    positions, q = torch.tensor([1, 8, 44]), torch.randn(3, 6, 16)
    tables = context.block_tables[0][None]
    for queries in (Queries.of([positions]), Queries.within([positions], num_keys=48)):
        out = selective_attention(q, queries, caches.layers[0], tables, caches.specs[0])
        torch.testing.assert_close(out, dense.attend(0, q, positions), rtol=1e-4, atol=1e-5)


def test_refusals() -> None:
    model = make_model("Llama")
    caches, other = (vacant_caches(model, "joined", NUM_BLOCKS) for _ in range(2))
    tables = tables_of([40])[0]
    context = PagedContextKV(caches, tables, num_tokens=40)
    with pytest.raises(ValueError, match="the block tables hold 48 tokens, the context has 49"):
        PagedContextKV(caches, tables, num_tokens=49)
    with pytest.raises(ValueError, match=r"no block table for group 1, only for \[0\]"):
        PagedContextKV(caches, {0: tables[0]}, num_tokens=40)
    q, kv = torch.zeros(2, 6, 16), torch.zeros(2, 2, 16)
    with pytest.raises(ValueError, match=r"request 0 has no block for position 48"):
        PagedContextKV.batch([context], [torch.tensor([3, 48])]).attend(0, q, kv, kv)
    with pytest.raises(ValueError, match="positions of request 0 do not increase"):
        PagedContextKV.batch([context], [torch.tensor([3, 3])])
    with pytest.raises(ValueError, match="different caches"):
        PagedContextKV.batch([context, PagedContextKV(other, tables, num_tokens=40)], [torch.tensor([3])] * 2)
    shape = (3, 20, model.num_kv_heads, model.head_dim)
    staged = StagedPassage.empty(*shape, codec=Codec(), dtype=torch.float32)
    with pytest.raises(ValueError, match="passage 0 goes to tokens 30 to 50; its context has 40"):
        PassageLoad([PlacedPassage(staged, context, 30, 0)])
    with pytest.raises(ValueError, match="a passage moves by -512 positions; the rotary table reaches 511"):
        PassageLoad([PlacedPassage(staged, context, 3, -512)])
    with pytest.raises(ValueError, match="block size 32, others 16"):
        type(caches).of(caches.layers, caches.specs, tables=model.rotary_tables)
    PassageLoad([]).layer(0)
