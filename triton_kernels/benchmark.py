"""Every kernel checked against its reference, then timed against its floor, at the shapes of Llama-3.1-8B.

On CPU the references run at small shapes, to show that the benchmark does; there, nothing has a floor.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kvblend.triton_kernels import gather_quantize, kv_deviation, load_rerotate, probe_scores, selective_attention
from kvblend.triton_kernels.attention_spec import AttentionSpec
from kvblend.triton_kernels.codecs import Codec, dequantize
from kvblend.triton_kernels.gather_quantize.reference import gather_quantize_reference
from kvblend.triton_kernels.kv_deviation.reference import kv_deviation_reference
from kvblend.triton_kernels.load_rerotate.reference import load_rerotate_reference
from kvblend.triton_kernels.paged_kv import PagedKV, PagedLayers
from kvblend.triton_kernels.probe_scores import ProbedContext, probe_scores_reference
from kvblend.triton_kernels.queries import Queries
from kvblend.triton_kernels.selective_attention.reference import selective_attention_reference
from kvblend.triton_kernels.staged import StagedPassage

__all__ = ["KernelResult", "kernel_results"]

BLOCK_SIZE, NUM_KV_HEADS, NUM_HEADS, HEAD_DIM, PASSAGE_TOKENS = 16, 8, 32, 128, 512
CODECS = (Codec(), Codec("fp8", 64), Codec("int8", 64), Codec("int4", 32))
SELECTED_SHARE = 0.15
QUESTION_TOKENS = 32
CHECKED_QUERIES = 64
SPEC = AttentionSpec(HEAD_DIM**-0.5)


@dataclass(frozen=True)
class KernelResult:
    """One kernel at one shape. `max_error` is the largest absolute difference from the reference.

    `floor_ms`: moving the same bytes at the rate of a large copy; computing the same products at the rate of flash
    attention on a dense causal prefill; for probe_scores, selective_attention on the same queries. None without a GPU.
    The row sdpa_explicit_mask is PyTorch's own attention at selective_attention's shape, there to compare: no error.
    """

    kernel: str
    shape: str
    dtype: str
    ms_p20: float
    ms_p50: float
    ms_p80: float
    floor_ms: float | None
    max_error: float | None

    @property
    def fraction_of_floor(self) -> float | None:
        """1.0 is as fast as the floor, 0.5 takes twice as long."""
        return None if self.floor_ms is None else self.floor_ms / self.ms_p50


def kernel_results(device: torch.device) -> Iterator[KernelResult]:
    """Raises AssertionError where a kernel is wrong: no speed is reported from a wrong result."""
    torch.manual_seed(0)
    on_gpu = device.type == "cuda"
    num_layers, num_tokens = (32, 4096) if on_gpu else (2, 512)
    for codec in CODECS:
        yield from _moves(codec, num_layers, num_tokens, device)
    yield _deviation(num_tokens, device)
    for length in (4096, 16384, 32768) if on_gpu else (256,):
        yield from _attention(length, device)


def times(function: Callable[[], object], device: torch.device) -> tuple[float, float, float]:
    """20th, 50th and 80th percentile of a call, in ms; on a GPU with a cold L2 cache."""
    if device.type == "cuda":
        from triton.testing import do_bench

        low, middle, high = do_bench(function, warmup=100, rep=400, quantiles=[0.2, 0.5, 0.8])
        return float(low), float(middle), float(high)
    taken = []
    for _ in range(5):
        begun = time.perf_counter()
        function()
        taken.append(1000 * (time.perf_counter() - begun))
    taken.sort()
    return taken[1], statistics.median(taken), taken[3]


def copy_ms_per_byte(device: torch.device) -> float | None:
    """Time to read or write a byte in a large device-to-device copy."""
    if device.type != "cuda":
        return None
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return times(lambda: target.copy_(source), device)[1] / (2 * source.numel())


def _result(
    kernel: str,
    shape: str,
    dtype: str,
    run: Callable[[], object],
    floor_ms: float | None,
    error: float | None,
    device: torch.device,
) -> KernelResult:
    return KernelResult(kernel, shape, dtype, *times(run, device), floor_ms, error)


def _cache(num_tokens: int, device: torch.device) -> PagedKV:
    shape = (num_tokens // BLOCK_SIZE + 1, NUM_KV_HEADS, BLOCK_SIZE, 2 * HEAD_DIM)
    return PagedKV.from_joined(torch.randn(shape, dtype=torch.bfloat16, device=device))


def _error(ours: Tensor, theirs: Tensor, tolerance: float) -> float:
    error = float((ours.float() - theirs.float()).abs().max())
    assert error <= tolerance, f"off by {error}, more than {tolerance}"
    return error


def _quantization_error(ours: StagedPassage, theirs: StagedPassage) -> float:
    """Of the first layer; a number between two codes may fall to either, but hardly any does."""
    differing = ours.payload[0].view(torch.uint8) != theirs.payload[0].view(torch.uint8)
    assert float(differing.float().mean()) <= 1e-3, "codes differ"
    numbers = [dequantize(staged.payload[0], staged.scales[0], staged.codec) for staged in (ours, theirs)]
    step = {"raw": 0.0, "fp8": 1 / 14, "int8": 1 / 127, "int4": 1 / 7}[ours.codec.name]
    return _error(numbers[0], numbers[1], 1.01 * step * float(numbers[1].abs().max()))


def _moves(codec: Codec, num_layers: int, num_tokens: int, device: torch.device) -> Iterator[KernelResult]:
    caches = PagedLayers.of([_cache(num_tokens, device) for _ in range(num_layers)])
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

    def gather() -> None:
        gather_quantize(caches, slots, lengths, codec=codec, out=staged)

    yield _result("gather_quantize", shape, f"bf16 to {codec.name}", gather, floor, gather_error, device)

    targets = PagedLayers.of([_cache(num_tokens, device) for _ in range(num_layers)])
    wanted = _cache(num_tokens, device)

    def load() -> None:
        load_rerotate(staged, targets, slots, deltas, cos, sin, interleaved=False)

    load()
    load_rerotate_reference(staged, [wanted], slots, deltas, cos, sin, interleaved=False, source_layers=[0])
    load_error = max(
        _error(targets.first.keys[1:], wanted.keys[1:], 0.07), _error(targets.first.values[1:], wanted.values[1:], 0.07)
    )
    yield _result("load_rerotate", shape, f"{codec.name} to bf16", load, floor, load_error, device)


def _deviation(num_tokens: int, device: torch.device) -> KernelResult:
    cache = _cache(num_tokens, device)
    slots = torch.arange(BLOCK_SIZE, BLOCK_SIZE + num_tokens, device=device)
    fresh = torch.randn(num_tokens, NUM_KV_HEADS, HEAD_DIM, dtype=torch.bfloat16, device=device)

    def run() -> Tensor:
        return kv_deviation(fresh, cache.keys, slots)

    rate = copy_ms_per_byte(device)
    floor = None if rate is None else rate * (2 * fresh.nbytes + 4 * num_tokens)
    error = _error(run(), kv_deviation_reference(fresh, cache.keys, slots), 0.1)
    return _result("kv_deviation", f"{num_tokens} tokens, one layer", "bf16", run, floor, error, device)


def _attention(length: int, device: torch.device) -> Iterator[KernelResult]:
    cache = _cache(length + QUESTION_TOKENS, device)
    num_blocks = cache.keys.shape[0] - 1
    tables = (torch.randperm(num_blocks, device=device) + 1).int()[None]
    positions = torch.randperm(length)[: int(length * SELECTED_SHARE)].sort().values
    queries = Queries.of([positions], device=device)
    q = torch.randn(len(positions), NUM_HEADS, HEAD_DIM, dtype=torch.bfloat16, device=device)
    shape = f"{len(positions)} of {length} tokens, {NUM_HEADS} heads of {HEAD_DIM} on {NUM_KV_HEADS} KV heads"

    def attend() -> Tensor:
        return selective_attention(q, queries, cache, tables, SPEC)

    some = torch.arange(0, len(positions), -(-len(positions) // CHECKED_QUERIES))
    checked = Queries.of([positions[some]], device=device)
    some = some.to(device)
    expected, _ = selective_attention_reference(q[some], checked, cache, tables, SPEC)
    error = _error(attend()[some], expected, 0.02)
    floor = None
    if device.type == "cuda":
        products = 4 * HEAD_DIM * NUM_HEADS * float((positions + 1).sum())
        floor = products / _flash_products_per_ms(length, device)
        yield _result(
            "sdpa_explicit_mask", shape, "bf16", _masked_sdpa(q, positions, length, device), floor, None, device
        )
    yield _result("selective_attention", shape, "bf16", attend, floor, error, device)

    asked = Queries.of([torch.arange(length, length + QUESTION_TOKENS)], device=device)
    own = (QUESTION_TOKENS, NUM_KV_HEADS, HEAD_DIM)
    own_keys, own_values = torch.randn(2, *own, dtype=torch.bfloat16, device=device)
    question, context = q[:QUESTION_TOKENS], ProbedContext.of([length], device=device)

    def probe() -> tuple[Tensor, Tensor]:
        return probe_scores(question, own_keys, own_values, asked, cache, tables, context, SPEC)

    out, scores = probe()
    expected_scores = torch.zeros_like(scores)
    arguments = (question, own_keys, own_values, asked, cache, tables, context, SPEC, expected_scores)
    error = max(_error(out, probe_scores_reference(*arguments), 0.02), _error(scores, expected_scores, 0.05))
    floor = None
    if device.type == "cuda":
        floor = times(lambda: selective_attention(question, asked, cache, tables, SPEC), device)[1]
    shape = f"{len(question)} question tokens on {length}, {NUM_HEADS} heads of {HEAD_DIM} on {NUM_KV_HEADS} KV heads"
    yield _result("probe_scores", shape, "bf16", probe, floor, error, device)


def _dense(length: int, num_heads: int, device: torch.device) -> Tensor:
    return torch.randn(1, num_heads, length, HEAD_DIM, dtype=torch.bfloat16, device=device)


def _flash_products_per_ms(length: int, device: torch.device) -> float:
    """What flash attention does on a dense causal prefill of the same length and heads."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = (_dense(length, NUM_HEADS, device) for _ in range(3))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        taken = times(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True), device)[1]
    return 4 * HEAD_DIM * NUM_HEADS * length * (length + 1) / 2 / taken


def _masked_sdpa(q: Tensor, positions: Tensor, length: int, device: torch.device) -> Callable[[], Tensor]:
    """PyTorch's attention for the same queries with a mask over all keys."""
    queries = q.transpose(0, 1)[None]
    keys, values = _dense(length, NUM_HEADS, device), _dense(length, NUM_HEADS, device)
    mask = torch.arange(length, device=device)[None] <= positions.to(device)[:, None]
    return lambda: F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
