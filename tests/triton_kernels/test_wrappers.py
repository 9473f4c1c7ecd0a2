"""The references against blend/'s own functions, vLLM's layouts, and what the wrappers refuse."""

import dataclasses

import pytest
import torch
from vllm.v1.kv_cache_layout import KVCacheLayout

from kvblend.blend import attention as blend_attention
from kvblend.blend.rotary import RotaryTable, rerotate
from kvblend.triton_kernels import (
    AttentionSpec,
    Codec,
    PagedKV,
    PagedLayers,
    ProbedContext,
    Queries,
    StagedPassage,
    gather_quantize,
    kv_deviation,
    load_rerotate,
    probe_scores,
    selective_attention,
)
from tests.triton_kernels.paged_samples import block_tables, fill, paged_cache, slots_of


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("delta", [-17, 0, 30])
def test_rerotation_is_that_of_blend(interleaved: bool, delta: int) -> None:
    torch.manual_seed(0)
    angles = torch.arange(40)[:, None] * torch.rand(24)
    table = RotaryTable(angles.cos(), angles.sin(), interleaved)
    caches = PagedLayers.of([paged_cache("joined", 3, 16, 2, 64, torch.float32)])
    staged = StagedPassage.empty(1, 20, 2, 64, codec=Codec(), dtype=torch.float32)
    staged.payload.normal_()
    slots = torch.arange(16, 36)
    load_rerotate([staged], caches, slots, torch.full((20,), delta), table.cos, table.sin, interleaved=interleaved)
    torch.testing.assert_close(
        caches.first.keys[1:].flatten(0, 1)[:20], rerotate(staged.payload[0, 0], table, delta=delta)
    )
    assert torch.equal(caches.first.values[1:].flatten(0, 1)[:20], staged.payload[0, 1])
    assert caches.first.keys[0].isnan().all()


@pytest.mark.parametrize(("window", "soft_cap"), [(None, None), (9, None), (None, 4.0), (9, 4.0)])
def test_attention_and_scores_are_those_of_blend(window: int | None, soft_cap: float | None) -> None:
    torch.manual_seed(0)
    tables, blocks = block_tables([45], 16)
    cache, slots = paged_cache("split", blocks, 16, 2, 32, torch.float32), slots_of(tables[0], 45, 16)
    fill(cache, slots)
    keys, values = cache.keys[slots // 16, slots % 16], cache.values[slots // 16, slots % 16]
    spec = AttentionSpec(0.2, window, soft_cap)
    positions = torch.tensor([0, 3, 17, 30, 44])
    q = torch.randn(5, 6, 32)
    torch.testing.assert_close(
        selective_attention(q, Queries.of([positions]), cache, tables, spec),
        blend_attention.causal_attention(spec, q, keys, values, positions),
    )
    positions, own_keys, own_values = torch.arange(45, 50), torch.randn(5, 2, 32), torch.randn(5, 2, 32)
    out, scores = probe_scores(
        q, own_keys, own_values, Queries.of([positions]), cache, tables, ProbedContext.of([45]), spec
    )
    expected, expected_scores = blend_attention.scored_attention(
        spec, q, torch.cat((keys, own_keys)), torch.cat((values, own_values)), positions, torch.arange(50)
    )
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(scores.sum(0), expected_scores[:45])


@pytest.mark.parametrize("layout", list(KVCacheLayout))
def test_every_layout_of_vllm_is_a_view(layout: KVCacheLayout) -> None:
    """Layers carved out of one allocation in vLLM's physical order, read through `from_joined`."""
    logical = (2, 5, 3, 16, 2 * 8)  # layers, blocks, KV heads, tokens, keys and values
    order = layout.stride_order
    memory = torch.arange(2 * 5 * 3 * 16 * 16).float().view([logical[axis] for axis in order])
    whole = memory.permute([order.index(axis) for axis in range(5)])
    caches = PagedLayers.of([PagedKV.from_joined(whole[layer]) for layer in range(2)])
    (passage,) = gather_quantize(caches, torch.arange(16, 80), [64], codec=Codec())
    tokens = whole[:, 1:].permute(0, 1, 3, 2, 4).reshape(2, 64, 3, 16)
    assert torch.equal(passage.payload, torch.stack((tokens[..., :8], tokens[..., 8:]), dim=1))


def test_the_layout_of_vllm_on_cpu() -> None:
    """Written by vLLM's own kernel."""
    from vllm import _custom_ops as ops

    cache = torch.zeros(3, 2, 32, 2 * 64)
    key_cache, value_cache = cache.view(3, 2, 64, 64).chunk(2, dim=2)
    keys, values, slots = torch.randn(40, 2, 64), torch.randn(40, 2, 64), torch.arange(32, 72)
    ops.cpu_attn_reshape_and_cache(keys, values, key_cache, value_cache, slots, "vec")
    caches = PagedLayers.of([PagedKV.from_transposed_keys(cache)])
    (passage,) = gather_quantize(caches, slots, [40], codec=Codec())
    assert torch.equal(passage.payload[0], torch.stack((keys, values)))


@pytest.mark.parametrize("codec", [Codec("fp8", 16), Codec("int8", 32), Codec("int4", 8)], ids=str)
def test_a_round_trip_loses_half_a_step(codec: Codec) -> None:
    torch.manual_seed(0)
    caches = PagedLayers.of([paged_cache("joined", 4, 16, 2, 64, torch.float32)])
    slots, none = torch.arange(16, 64), torch.zeros(48, dtype=torch.int64)
    fill(caches.first, slots)
    before = caches.first.keys[1:].flatten(0, 1)
    staged = gather_quantize(caches, slots, [48], codec=codec)
    load_rerotate(staged, caches, slots, none, torch.ones(1, 32), torch.zeros(1, 32), interleaved=False)
    error = (caches.first.keys[1:].flatten(0, 1) - before).abs().view(48, 2, -1, codec.group_size).amax(-1)
    largest = before.abs().view(48, 2, -1, codec.group_size).amax(-1)
    step = {"fp8": 32 / 448, "int8": 1 / 127, "int4": 1 / 7}[codec.name]
    assert (error <= 0.51 * step * largest).all()


def test_refusals() -> None:
    cache = paged_cache("joined", 4, 16, 2, 64, torch.float32)
    caches, tables, spec = PagedLayers.of([cache]), torch.ones(1, 3, dtype=torch.int32), AttentionSpec(0.1)
    queries, q = Queries.of([torch.tensor([1, 5])]), torch.randn(2, 4, 64)
    with pytest.raises(ValueError, match="positions of request 0 do not increase"):
        Queries.of([torch.tensor([5, 5])])
    with pytest.raises(ValueError, match="49 keys do not fit block tables of 3 blocks of 16"):
        selective_attention(q, Queries.of([torch.tensor([1, 48])]), cache, tables, spec)
    with pytest.raises(ValueError, match="3 query heads are no multiple of 2"):
        selective_attention(q[:, :3], queries, cache, tables, spec)
    with pytest.raises(ValueError, match=r"q is torch\.float16, the cache torch\.float32"):
        selective_attention(q.half(), queries, cache, tables, spec)
    with pytest.raises(ValueError, match="sliding_window is 0"):
        AttentionSpec(0.1, sliding_window=0)
    with pytest.raises(ValueError, match="num_parts is 65"):
        selective_attention(q, queries, cache, tables, spec, num_parts=65)
    with pytest.raises(ValueError, match="own_keys are"):
        probe_scores(q, q, q, queries, cache, tables, ProbedContext.of([9]), spec)
    with pytest.raises(ValueError, match=r"fresh .* does not fit cached"):
        kv_deviation(q, cache.keys, torch.arange(2))
    with pytest.raises(ValueError, match=r"group_size 64 does not divide half of head_dim 64"):
        gather_quantize(caches, torch.arange(3), [3], codec=Codec("int8", 64))
    with pytest.raises(ValueError, match="group_size is 24"):
        Codec("int8", 24)
    with pytest.raises(ValueError, match=r"slots are torch\.int64 \[3\], not contiguous integers \[4\]"):
        gather_quantize(caches, torch.arange(3), [4], codec=Codec())
    (staged,) = gather_quantize(caches, torch.arange(3), [3], codec=Codec("int8", 8))
    cos, sin = torch.ones(9, 32), torch.zeros(9, 32)
    with pytest.raises(ValueError, match="source_layers name layer 1; passage 0 has 1"):
        load_rerotate(
            [staged], caches, torch.arange(3), torch.arange(3), cos, sin, interleaved=False, source_layers=[1]
        )
    with pytest.raises(ValueError, match="scales are"):
        bad = dataclasses.replace(staged, scales=staged.scales.float())
        load_rerotate([bad], caches, torch.arange(3), torch.arange(3), cos, sin, interleaved=False)
    other = paged_cache("split", 4, 16, 2, 64, torch.float32)
    with pytest.raises(ValueError, match="layer 1's layout"):
        PagedLayers.of([cache, other])
