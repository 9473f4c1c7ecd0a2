"""The kernels that move KV: loading, encoding, writing what was recomputed, and measuring how far it moved."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from kvblend.triton_kernels import LoadPlan, gather_quantize, kv_deviation, write_kv
from kvblend.triton_kernels.benchmark.result import (
    BLOCK_SIZE,
    HEAD_DIM,
    NUM_KV_HEADS,
    KernelResult,
    checked_error,
    copy_ms_per_byte,
    random_cache,
    timed,
)
from kvblend.triton_kernels.codecs import Codec, dequantize
from kvblend.triton_kernels.gather_quantize import gather_quantize_reference
from kvblend.triton_kernels.gather_quantize import launches as gather_launches
from kvblend.triton_kernels.kv_deviation.reference import kv_deviation_reference
from kvblend.triton_kernels.launch import uses_kernel
from kvblend.triton_kernels.load_rerotate.reference import load_rerotate_reference
from kvblend.triton_kernels.paged_kv import PagedLayers
from kvblend.triton_kernels.staged import StagedPassage
from kvblend.triton_kernels.write_kv.reference import write_kv_reference

__all__ = ["deviation", "moves", "writes"]

PASSAGE_TOKENS = 512


def moves(codec: Codec, num_layers: int, num_tokens: int, device: torch.device) -> Iterator[KernelResult]:
    """gather_quantize and load_rerotate of the same passages, their tables on the device already."""
    caches = PagedLayers.of([random_cache(num_tokens, device) for _ in range(num_layers)])
    lengths = [PASSAGE_TOKENS] * (num_tokens // PASSAGE_TOKENS)
    blocks = torch.randperm(num_tokens // BLOCK_SIZE, device=device) + 1
    slots = (blocks[:, None] * BLOCK_SIZE + torch.arange(BLOCK_SIZE, device=device)).flatten()
    deltas = torch.randint(-2000, 4000, (len(lengths), 1), device=device).repeat(1, PASSAGE_TOKENS).flatten()
    frequencies = 500000 ** (-torch.arange(0, HEAD_DIM, 2, device=device) / HEAD_DIM)
    angles = torch.arange(4096, device=device)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()

    staged = gather_quantize(caches, slots, lengths, codec=codec)
    axes = (NUM_KV_HEADS, HEAD_DIM)
    first = [StagedPassage.empty(1, n, *axes, codec=codec, dtype=torch.bfloat16, device=device) for n in lengths]
    gather_quantize_reference(caches.layers[:1], slots, first, target_layers=[0])
    gather_error = max(_quantization_error(ours, theirs) for ours, theirs in zip(staged, first, strict=True))
    num_bytes = sum(s.payload.nbytes + s.scales.nbytes for s in staged)
    num_bytes += num_layers * 2 * num_tokens * NUM_KV_HEADS * HEAD_DIM * 2
    rate = copy_ms_per_byte(device)
    floor = None if rate is None else num_bytes * rate
    shape = f"{num_layers} layers, {num_tokens} tokens, {NUM_KV_HEADS} KV heads of {HEAD_DIM}"

    gather: Callable[[], object]
    if uses_kernel(slots):
        (gather,) = (launch.run for launch in gather_launches(caches, slots, staged, target_layers=range(num_layers)))
    else:
        gather = partial(gather_quantize, caches, slots, lengths, codec=codec, out=staged)
    yield timed("gather_quantize", shape, f"bf16 to {codec.name}", gather, floor, gather_error, device)

    targets = PagedLayers.of([random_cache(num_tokens, device) for _ in range(num_layers)])
    wanted = random_cache(num_tokens, device)

    plan = LoadPlan.of(staged, targets, slots, deltas, cos, sin, interleaved=False)
    plan.run()
    load_rerotate_reference(staged, [wanted], slots, deltas, cos, sin, interleaved=False, source_layers=[0])
    load_error = max(
        checked_error(targets.first.keys[1:], wanted.keys[1:], 0.07),
        checked_error(targets.first.values[1:], wanted.values[1:], 0.07),
    )
    yield timed("load_rerotate", shape, f"{codec.name} to bf16", plan.run, floor, load_error, device)


def deviation(num_tokens: int, device: torch.device) -> KernelResult:
    """kv_deviation of one layer's keys."""
    cache = random_cache(num_tokens, device)
    slots = torch.arange(BLOCK_SIZE, BLOCK_SIZE + num_tokens, device=device)
    fresh = torch.randn(num_tokens, NUM_KV_HEADS, HEAD_DIM, dtype=torch.bfloat16, device=device)

    def run() -> Tensor:
        return kv_deviation(fresh, cache.keys, slots)

    rate = copy_ms_per_byte(device)
    floor = None if rate is None else rate * (2 * fresh.nbytes + 4 * num_tokens)
    error = checked_error(run(), kv_deviation_reference(fresh, cache.keys, slots), 0.1)
    return timed("kv_deviation", f"{num_tokens} tokens, one layer", "bf16", run, floor, error, device)


def writes(num_tokens: int, device: torch.device) -> KernelResult:
    """As many tokens as a repair recomputes, each to a slot of its own."""
    ours, wanted = random_cache(num_tokens, device), random_cache(num_tokens, device)
    fresh = torch.randn(num_tokens, 2 * NUM_KV_HEADS, HEAD_DIM, dtype=torch.bfloat16, device=device)
    keys, values = fresh.chunk(2, dim=1)
    slots = torch.randperm(num_tokens, device=device) + BLOCK_SIZE

    def run() -> None:
        write_kv(keys, values, ours, slots)

    run()
    write_kv_reference(keys, values, wanted, slots)
    error = max(
        checked_error(ours.keys[1:], wanted.keys[1:], 0.0), checked_error(ours.values[1:], wanted.values[1:], 0.0)
    )
    rate = copy_ms_per_byte(device)
    floor = None if rate is None else rate * 2 * fresh.nbytes
    return timed("write_kv", f"{num_tokens} tokens, one layer", "bf16", run, floor, error, device)


def _quantization_error(ours: StagedPassage, theirs: StagedPassage) -> float:
    """Of the first layer; a number between two codes may fall to either, but hardly any does."""
    differing = ours.payload[0].view(torch.uint8) != theirs.payload[0].view(torch.uint8)
    assert float(differing.float().mean()) <= 1e-3, "codes differ"
    numbers = [dequantize(staged.payload[0], staged.scales[0], staged.codec) for staged in (ours, theirs)]
    step = {"raw": 0.0, "fp8": 1 / 14, "int8": 1 / 127, "int4": 1 / 7}[ours.codec.name]
    return checked_error(numbers[0], numbers[1], 1.01 * step * float(numbers[1].abs().max()))
