"""Launches that stand for what a served model asks for, to be compiled where no GPU is."""

from collections.abc import Iterator

import torch

from kvblend.triton_kernels.address_table import AddressTable
from kvblend.triton_kernels.attention_spec import AttentionSpec
from kvblend.triton_kernels.codecs import Codec
from kvblend.triton_kernels.gather_quantize import launches as gather_launches
from kvblend.triton_kernels.kv_deviation import launches as deviation_launches
from kvblend.triton_kernels.launch import Launch
from kvblend.triton_kernels.load_rerotate import LoadPlan
from kvblend.triton_kernels.paged_kv import PagedKV, PagedLayers
from kvblend.triton_kernels.probe_scores import ProbedContext
from kvblend.triton_kernels.probe_scores import launches as probe_launches
from kvblend.triton_kernels.queries import Queries
from kvblend.triton_kernels.selective_attention import launches as attention_launches
from kvblend.triton_kernels.staged import StagedPassage
from kvblend.triton_kernels.write_kv import launches as write_launches

__all__ = ["representative_launches"]

BLOCK_SIZE, NUM_KV_HEADS, NUM_HEADS = 16, 8, 32
DTYPE = torch.bfloat16


def _cache(head_dim: int, num_blocks: int = 8) -> PagedKV:
    return PagedKV.from_joined(torch.empty(num_blocks, NUM_KV_HEADS, BLOCK_SIZE, 2 * head_dim, dtype=DTYPE))


def _moves(codec: Codec, head_dim: int, rotary_pairs: int, interleaved: bool) -> Iterator[Launch]:
    caches = PagedLayers.of([_cache(head_dim), _cache(head_dim)])
    staged = [StagedPassage.empty(2, 48, NUM_KV_HEADS, head_dim, codec=codec, dtype=DTYPE)]
    slots, cos = torch.arange(BLOCK_SIZE, BLOCK_SIZE + 48), torch.empty(64, rotary_pairs)
    plan = LoadPlan(
        tuple(staged),
        caches,
        slots,
        slots,
        cos,
        cos,
        interleaved,
        (0, 1),
        AddressTable.of(staged, (0, 1), device=slots.device),
    )
    yield from plan.launches()
    if not interleaved:
        yield from gather_launches(caches, slots, staged, target_layers=[0, 1])


def _attention(spec: AttentionSpec, head_dim: int, capability: int) -> Iterator[Launch]:
    cache, tables = _cache(head_dim), torch.ones(1, 272, dtype=torch.int32)
    q, queries = torch.empty(640, NUM_HEADS, head_dim, dtype=DTYPE), Queries.of([torch.arange(640) * 6])
    yield from attention_launches(q, queries, cache, tables, spec, num_parts=1, capability=capability)[0]


def _probe(spec: AttentionSpec, head_dim: int, capability: int, readable: torch.Tensor | None) -> Iterator[Launch]:
    cache, tables = _cache(head_dim), torch.ones(1, 272, dtype=torch.int32)
    q, queries = torch.empty(32, NUM_HEADS, head_dim, dtype=DTYPE), Queries.of([torch.arange(4096, 4128)])
    own = torch.empty(32, NUM_KV_HEADS, head_dim, dtype=DTYPE)
    context, scores = ProbedContext.of([4096], readable=readable), torch.empty(NUM_KV_HEADS, 4096)
    yield from probe_launches(
        q, own, own, queries, cache, tables, context, spec, scores=scores, num_parts=8, capability=capability
    )[0]


def representative_launches(capability: int) -> Iterator[tuple[str, Launch]]:
    """Each with a short name of its variant, planned for a GPU of `capability`."""
    for codec, head_dim, rotary_pairs, interleaved in (
        (Codec(), 128, 64, False),
        (Codec("fp8", 64), 128, 64, False),
        (Codec("int8", 64), 128, 64, False),
        (Codec("int4", 32), 128, 64, False),
        (Codec("int4", 16), 96, 24, True),
        (Codec("int8_channel"), 128, 64, False),
    ):
        kind = "interleaved" if interleaved else "neox"
        for launch in _moves(codec, head_dim, rotary_pairs, interleaved):
            yield f"{codec.name}; head_dim {head_dim}; {kind} {2 * rotary_pairs}", launch
    for head_dim in (64, 128, 256):
        for launch in _attention(AttentionSpec(head_dim**-0.5), head_dim, capability):
            yield f"head_dim {head_dim}", launch
    for launch in _probe(AttentionSpec(128**-0.5), 128, capability, None):
        yield "head_dim 128", launch
    everything = AttentionSpec(0.1, sliding_window=1024, soft_cap=50.0, sinks=torch.zeros(NUM_HEADS))
    for launch in _attention(everything, 128, capability):
        yield "head_dim 128; window; soft cap; sinks", launch
    for launch in _probe(everything, 128, capability, torch.ones(4096, dtype=torch.bool)):
        if launch.kernel.__name__ != "merge_parts_kernel":
            yield "head_dim 128; window; soft cap; sinks; partly readable", launch
    fresh, slots = torch.empty(48, NUM_KV_HEADS, 128, dtype=DTYPE), torch.arange(48)
    for launch in deviation_launches(fresh, _cache(128).keys, slots, torch.empty(48)):
        yield "head_dim 128", launch
    for launch in write_launches(fresh, fresh, _cache(128), slots):
        yield "head_dim 128", launch
