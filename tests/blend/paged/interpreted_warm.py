"""Run in Triton's interpreter by test_interpreted: after `warm`, no pass of any size launches what is not compiled.

Launches are noted, and done only where that is said, so that contexts may be as long as they like.
"""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvblend.blend.paged import PagedCaches, PagedContextKV, PassageLoad, PlacedPassage, warm
from kvblend.blend.rotary import RotaryTable
from kvblend.triton_kernels import AttentionSpec, StagedPassage
from kvblend.triton_kernels.launch import Launch
from kvblend.triton_kernels.tiles import NUMBERS_OF_PARTS
from kvblend.triton_kernels.variant import Variant
from tests.triton_kernels.launched_variants import launched_variants
from tests.triton_kernels.paged_samples import paged_cache

GROUPS, BLOCK_SIZES = (0, 1, 0), (16, 32)
WINDOWED = (AttentionSpec(0.25), AttentionSpec(0.25, 24, 5.0), AttentionSpec(0.5))


@dataclass(frozen=True)
class Shape:
    layout: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    def caches(self, specs: tuple[AttentionSpec, ...] = WINDOWED) -> PagedCaches:
        """Two blocks, of zeros (the null one) and of NaN; layer 1 is a group of its own, layer 2's keys do not turn."""
        sizes = [BLOCK_SIZES[group] for group in GROUPS]
        layers = [paged_cache(self.layout, 2, size, self.num_kv_heads, self.head_dim, self.dtype) for size in sizes]
        for layer in layers:
            layer.keys[0], layer.values[0] = 0, 0
        table = RotaryTable(torch.ones(1 << 17, self.head_dim // 2), torch.zeros(1 << 17, self.head_dim // 2), False)
        return PagedCaches.of(layers, specs, tables=[table, table, None], groups=GROUPS)


SHAPES = [
    Shape("joined", 6, 2, 16, torch.bfloat16),
    Shape("split", 32, 16, 32, torch.float16),
    Shape("keys transposed", 6, 3, 24, torch.float32),
]


def tensors(shape: Shape, num_rows: int, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as a model's attention is given them."""
    q_dim, kv_dim = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    projected = torch.zeros(num_rows, q_dim + 2 * kv_dim, dtype=shape.dtype)
    q, k, v = torch.split(projected, [q_dim, kv_dim, kv_dim], dim=1)
    if kind != "projected":  # a norm, or a rotation, has given new ones
        q, k = q.clone(memory_format=torch.contiguous_format), k.clone(memory_format=torch.contiguous_format)
    if kind == "apart":
        v = v.clone(memory_format=torch.contiguous_format)
    q, k, v = (part.view(num_rows, -1, shape.head_dim) for part in (q, k, v))
    return q, k, v


@dataclass(frozen=True)
class Request:
    num_tokens: int
    num_question_tokens: int
    num_rows: int
    is_readable: bool


def blend(shape: Shape, caches: PagedCaches, requests: list[Request], kind: str) -> None:
    """Load passages, whole and through a window, probe and repair, all requests at once."""
    contexts, questions, rows = list[PagedContextKV](), list[Tensor](), list[Tensor]()
    for request in requests:
        readable = torch.ones(request.num_tokens, dtype=torch.bool)
        readable[-1] = request.is_readable
        tables = {
            group: torch.ones(-(-request.num_tokens // size), dtype=torch.int32)
            for group, size in caches.block_sizes.items()
        }
        contexts.append(PagedContextKV(caches, tables, num_tokens=request.num_tokens, readable=readable))
        questions.append(torch.arange(request.num_question_tokens) + request.num_tokens)
        rows.append(torch.arange(min(request.num_rows, request.num_tokens)))
        rows[-1][-1] = request.num_tokens - 1
    placed = []
    for index, context in enumerate(contexts):
        num_rows, num_tokens = (None, 2)[index % 2], min(40, context.num_tokens)
        kv = torch.empty(num_rows or 3, 2, num_tokens, shape.num_kv_heads, shape.head_dim, dtype=shape.dtype)
        placed.append(PlacedPassage(StagedPassage.raw(kv), context, 0, -index, skipped=index, num_rows=num_rows))
    load = PassageLoad(placed)
    load.all_layers()
    for layer in range(3):
        load.layer(layer)
    probing, repairing = PagedContextKV.batch(contexts, questions), PagedContextKV.batch(contexts, rows)
    for layer in range(3):
        probing.probe(layer, *tensors(shape, sum(map(len, questions)), kind))
        repairing.attend(layer, *tensors(shape, sum(map(len, rows)), kind))


def unwarmed(shape: Shape, requests: list[Request], kind: str, warmed: set[Variant]) -> set[Variant]:
    """What a blend launches that was not warmed."""
    with launched_variants() as launched:
        blend(shape, shape.caches(), requests, kind)
    return launched - warmed


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: shape.layout)
def shape(request: pytest.FixtureRequest) -> Shape:
    assert isinstance(request.param, Shape)
    return request.param


@pytest.fixture(scope="module")
def warmed(shape: Shape) -> set[Variant]:
    with launched_variants() as launched:
        warm(shape.caches(), shape.num_heads)
    return launched


REQUESTS = st.builds(
    Request, st.integers(1, 40_000), st.integers(1, 256), st.integers(1, 600), is_readable=st.booleans()
)


@settings(max_examples=100, deadline=None)
@given(st.lists(REQUESTS, min_size=1, max_size=6), st.sampled_from(["projected", "normed", "apart"]))
def test_nothing_is_left_to_compile(shape: Shape, warmed: set[Variant], requests: list[Request], kind: str) -> None:
    assert unwarmed(shape, requests, kind, warmed) == set()


def test_every_number_of_parts_comes_about(shape: Shape, warmed: set[Variant]) -> None:
    """And none is warmed that does not: with 16 KV heads a launch has programs enough for 16 parts of the keys."""
    with launched_variants() as launched:
        for num_tokens in (1, 300, 600, 1200, 2400, 4800, 9600):
            for is_readable in (True, False):
                blend(shape, shape.caches(), [Request(num_tokens, 1, 1, is_readable)], "projected")
    attention = {"selective_attention_kernel", "probe_attention_kernel", "merge_parts_kernel"}
    for name in attention:
        numbers = parts_of(name, launched)
        expected = {parts for parts in NUMBERS_OF_PARTS if parts * shape.num_kv_heads <= 264}
        assert numbers == parts_of(name, warmed) == expected - ({1} if name == "merge_parts_kernel" else set())
    assert {variant for variant in launched if variant.kernel in attention} <= warmed


def parts_of(kernel: str, variants: set[Variant]) -> set[int]:
    return {
        parameter.known
        for variant in variants
        if variant.kernel == kernel
        for parameter in variant.parameters
        if parameter.name == "PARTS"
    }


def test_what_is_not_warmed_is_noticed(shape: Shape) -> None:
    """The negative control: warmed for layers without a window, then for other heads."""
    requests = [Request(700, 9, 100, is_readable=True)]
    for specs, num_heads in (((AttentionSpec(0.25),) * 3, shape.num_heads), (WINDOWED, 2 * shape.num_heads)):
        with launched_variants() as warmed:
            warm(shape.caches(specs), num_heads)
        missing = unwarmed(shape, requests, "projected", warmed)
        attention = {"selective_attention_kernel", "probe_attention_kernel", "column_scores_kernel"}
        assert {variant.kernel for variant in missing} == attention


@pytest.mark.parametrize("shape", [SHAPES[0], Shape("keys transposed", 3, 1, 24, torch.float32)], ids=str)
def test_it_keeps_to_the_null_block(shape: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it computes from the null block's zeros is finite, all else is NaN; and it leaves everything as it was."""
    caches, untouched, run = shape.caches(), shape.caches(), Launch.run
    computed = set[str]()

    def run_and_look(launch: Launch) -> None:
        run(launch)
        for name in {"out", "scores"} & launch.arguments.keys():
            assert bool(launch.arguments[name].isfinite().all()), name
            computed.add(name)

    monkeypatch.setattr(Launch, "run", run_and_look)
    warm(caches, shape.num_heads)
    assert computed == {"out", "scores"}
    for ours, before in zip(caches.layers, untouched.layers, strict=True):
        assert torch.equal(ours.keys.isnan(), before.keys.isnan()) and not bool(ours.keys[0].any())
        assert torch.equal(ours.values.isnan(), before.values.isnan()) and not bool(ours.values[0].any())
