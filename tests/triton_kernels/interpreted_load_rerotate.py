"""Run under TRITON_INTERPRET=1 by test_kernels: load_rerotate and gather_quantize against their references."""

import pytest
import torch

from kvblend.triton_kernels import Codec, PagedKV, PagedLayers, StagedPassage, gather_quantize, load_rerotate
from kvblend.triton_kernels.codecs import quantize
from kvblend.triton_kernels.gather_quantize import gather_quantize_reference
from kvblend.triton_kernels.launch import uses_kernel
from kvblend.triton_kernels.load_rerotate import load_rerotate_reference
from tests.triton_kernels.paged_samples import block_tables, fill, paged_cache, slots_of

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32

# layout, codec, tokens of each passage, block size, KV heads, head_dim, dtype, rotary pairs, interleaved
CASES = [
    ("joined", Codec(), [1, 63], 16, 2, 64, BF16, 32, False),
    ("joined, tokens first", Codec("fp8", 16), [63, 1], 16, 1, 96, BF16, 48, True),
    ("split", Codec("int8", 64), [423], 32, 3, 128, FP16, 32, False),
    ("split, heads first", Codec("int4", 8), [40, 63], 128, 2, 80, FP32, 20, True),
    ("keys transposed", Codec("int4", 128), [63], 32, 1, 256, BF16, 128, False),
    ("joined", Codec("fp8", 32), [63, 7, 1], 128, 4, 64, FP16, 16, False),
    ("joined, tokens first", Codec(), [63], 32, 2, 80, FP16, 40, False),
    ("split, heads first", Codec("int8", 8), [5, 70], 16, 1, 80, BF16, 40, True),
    ("split", Codec("int4", 16), [1], 16, 2, 96, FP16, 24, False),
    ("keys transposed", Codec(), [64], 32, 1, 128, FP32, 64, True),
    ("joined", Codec("fp8", 128), [33], 32, 1, 256, FP32, 64, False),
]


def layers_of(layout: str, blocks: int, block_size: int, heads: int, head_dim: int, dtype: torch.dtype) -> PagedLayers:
    return PagedLayers.of([paged_cache(layout, blocks, block_size, heads, head_dim, dtype) for _ in range(2)])


def same(caches: PagedLayers, expected: PagedLayers) -> None:
    """Within the dtype's rounding; and NaN where nothing was to be written."""
    for cache, other in zip(caches.layers, expected.layers, strict=True):
        torch.testing.assert_close(cache.keys, other.keys, equal_nan=True)
        torch.testing.assert_close(cache.values, other.values, equal_nan=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_ways(case: tuple[str, Codec, list[int], int, int, int, torch.dtype, int, bool]) -> None:
    """Reference: the PyTorch specification. Ours: the kernels, on the same numbers."""
    layout, codec, lengths, block_size, heads, head_dim, dtype, pairs, interleaved = case
    assert uses_kernel(torch.empty(0))
    torch.manual_seed(0)
    tables, blocks = block_tables(lengths, block_size)
    slots = torch.cat([slots_of(tables[row], length, block_size) for row, length in enumerate(lengths)])
    if len(slots) > 4:
        slots[1], slots[3] = -1, 5  # nowhere; in the null block
    caches = layers_of(layout, blocks, block_size, heads, head_dim, dtype)
    for cache in caches.layers:
        fill(cache, torch.arange(block_size, blocks * block_size))
        cache.keys[slots[0] // block_size, slots[0] % block_size] = 0  # a group of zeros has no scale

    expected = [StagedPassage.empty(2, n, heads, head_dim, codec=codec, dtype=dtype) for n in lengths]
    gather_quantize_reference(caches.layers, slots, expected, target_layers=[1, 0])
    blank = [StagedPassage.empty(2, n, heads, head_dim, codec=codec, dtype=dtype) for n in lengths]
    for passage in blank:
        passage.payload.view(torch.uint8).fill_(0x7F)
        passage.scales.fill_(torch.nan)
    gathered = gather_quantize(caches, slots, lengths, codec=codec, out=blank, target_layers=[1, 0])
    for ours, theirs in zip(gathered, expected, strict=True):
        torch.testing.assert_close(ours.scales, theirs.scales, rtol=0, atol=0)
        assert torch.equal(ours.payload.view(torch.uint8), theirs.payload.view(torch.uint8))

    deltas = torch.randint(-40, 60, (len(slots),))
    angles = torch.arange(64)[:, None] * torch.rand(pairs)
    loaded = layers_of(layout, blocks, block_size, heads, head_dim, dtype)
    wanted = layers_of(layout, blocks, block_size, heads, head_dim, dtype)
    load_rerotate(
        expected, loaded, slots, deltas, angles.cos(), angles.sin(), interleaved=interleaved, source_layers=[1, 0]
    )
    load_rerotate_reference(
        expected,
        wanted.layers,
        slots,
        deltas,
        angles.cos(),
        angles.sin(),
        interleaved=interleaved,
        source_layers=[1, 0],
    )
    same(loaded, wanted)


def test_every_e4m3_code() -> None:
    """All 254 finite bytes come back as PyTorch reads them, and go out as PyTorch writes them."""
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    codes[(codes & 127) == 127] = 0
    payload = codes.view(torch.float8_e4m3fn).view(1, 1, 1, 1, 256).expand(1, 2, 1, 1, 256).contiguous()
    staged = StagedPassage(payload, torch.ones(1, 2, 1, 1, 2, dtype=FP16), Codec("fp8", 128))
    caches = PagedLayers.of([paged_cache("split", 2, 16, 1, 256, FP32)])
    slots, none = torch.tensor([16]), torch.zeros(1, dtype=torch.int64)
    load_rerotate([staged], caches, slots, none, torch.ones(1, 128), torch.zeros(1, 128), interleaved=False)
    numbers = caches.first.values[1, 0, 0]
    assert torch.equal(numbers, codes.view(torch.float8_e4m3fn).float())
    assert torch.equal(caches.first.keys[1, 0, 0], numbers)
    (back,) = gather_quantize(caches, slots, [1], codec=Codec("fp8", 128))
    assert torch.equal(back.payload[0, 1, 0, 0].view(torch.uint8), codes)


def test_a_difference_beyond_the_table_shows() -> None:
    caches = PagedLayers.of([PagedKV.from_split(torch.zeros(2, 2, 16, 1, 64))])
    staged = StagedPassage.empty(1, 2, 1, 64, codec=Codec(), dtype=FP32)
    staged.payload.fill_(1)
    deltas = torch.tensor([9, 10])
    load_rerotate(
        [staged], caches, torch.tensor([16, 17]), deltas, torch.ones(10, 32), torch.zeros(10, 32), interleaved=False
    )
    assert caches.first.keys[1, 0].isfinite().all() and caches.first.keys[1, 1].isnan().all()


@pytest.mark.parametrize(("heads", "head_dim", "pairs", "interleaved"), [(2, 64, 32, False), (3, 80, 20, True)])
def test_scales_by_channel(heads: int, head_dim: int, pairs: int, interleaved: bool) -> None:
    """Reference: the PyTorch specification. Ours: the kernel, of two passages whose scales differ."""
    torch.manual_seed(1)
    lengths, block_size, codec = [37, 20], 16, Codec("int8_channel")
    tables, blocks = block_tables(lengths, block_size)
    slots = torch.cat([slots_of(tables[row], length, block_size) for row, length in enumerate(lengths)])
    passages = []
    for length in lengths:
        numbers = torch.randn(2, 2, length, heads, head_dim) * torch.rand(2, 2, 1, heads, head_dim)
        passages.append(StagedPassage(*quantize(numbers, codec), codec))
        assert passages[-1].scales.shape == (2, 2, 1, heads, head_dim)
    deltas, angles = torch.randint(-40, 60, (len(slots),)), torch.arange(64)[:, None] * torch.rand(pairs)
    loaded = layers_of("joined", blocks, block_size, heads, head_dim, BF16)
    wanted = layers_of("joined", blocks, block_size, heads, head_dim, BF16)
    load_rerotate(passages, loaded, slots, deltas, angles.cos(), angles.sin(), interleaved=interleaved)
    load_rerotate_reference(
        passages,
        wanted.layers,
        slots,
        deltas,
        angles.cos(),
        angles.sin(),
        interleaved=interleaved,
        source_layers=[0, 1],
    )
    same(loaded, wanted)
    passages[0].scales[0, 0, 0, 0, 0] *= 1.5
    load_rerotate(passages, loaded, slots, deltas, angles.cos(), angles.sin(), interleaved=interleaved)
    with pytest.raises(AssertionError):
        same(loaded, wanted)
