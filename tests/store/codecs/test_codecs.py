"""Codecs: how near what comes back is, what is refused, and that the kernels decode what the CPU decodes."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvblend.core.errors import CorruptPassageKVError, InvalidRequestError
from kvblend.core.settings import CodecName
from kvblend.store import NEVER, CPUTier, PassageKVKey
from kvblend.store.codecs import CodecSpec, PassageCodec, codec_of, codec_spec
from kvblend.store.content import TensorContent, layer_entry
from kvblend.triton_kernels.codecs import dequantize
from tests.store.samples import make_key, make_kv

NAMES: tuple[CodecName, ...] = get_args(CodecName)
DTYPES = st.sampled_from([torch.bfloat16, torch.float16, torch.float32])
SHAPES = st.tuples(st.just(2), st.integers(1, 70), st.integers(1, 3), st.sampled_from([8, 64, 80]))
SMALLEST = 1e-5
"""A scale in fp16 has steps of its own: 127 of 6e-8."""
LARGEST_ERROR = {"raw": 0.0, "fp8": 1 / 14, "int8": 1 / 220, "int4": 1 / 12, "entropy": 0.14}
"""Of a group's or channel's largest number, or of a channel's spread."""


def codec_for(name: CodecName, head_dim: int) -> PassageCodec:
    return codec_of(codec_spec(name, head_dim))


def numbers(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Channels of very different sizes, as keys have them, one of them zeros and one constant."""
    generator = torch.Generator().manual_seed(seed)
    channels = torch.exp(3 * torch.randn(shape[0], 1, *shape[2:], generator=generator))
    layer = torch.randn(shape, generator=generator) * channels
    layer[0, :, 0, 0], layer[1, :, 0, 1] = 0.0, 3.0
    return layer.clamp(-3e4, 3e4).to(dtype)


def bound(name: CodecName, layer: torch.Tensor, codec: PassageCodec) -> torch.Tensor:
    """The largest error that each number may have."""
    wide = layer.float()
    rounding = wide.abs() * 2.0**-7 if layer.dtype == torch.bfloat16 else wide.abs() * 2.0**-10
    if name == "raw":
        return torch.zeros_like(wide)
    if name in ("int8", "entropy"):
        spread = wide.abs().amax(1, keepdim=True)
        if name == "entropy":
            spread = torch.maximum(wide.std(1, keepdim=True, correction=0), spread / 127 / 0.25)
        return (LARGEST_ERROR[name] * spread).expand_as(wide) + rounding + SMALLEST
    grouped = wide.view(*wide.shape[:-1], -1, codec.staged_as.group_size)
    of_group = (LARGEST_ERROR[name] * grouped.abs().amax(-1, keepdim=True)).expand_as(grouped)
    return of_group.reshape(wide.shape) + rounding + SMALLEST


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=40)
@given(shape=SHAPES, dtype=DTYPES, seed=st.integers(0, 1000))
@example((2, 1, 1, 8), torch.bfloat16, 0)
def test_what_comes_back_is_near(
    name: CodecName, shape: tuple[int, int, int, int], dtype: torch.dtype, seed: int
) -> None:
    codec, layer = codec_for(name, shape[3]), numbers(seed, shape, dtype)
    codec.check(shape)
    stored, out = codec.encode(layer), torch.full(shape, torch.nan, dtype=dtype)
    assert stored.dtype == torch.uint8 and stored.dim() == 1
    codec.decode(stored, out)
    assert bool(((out.float() - layer.float()).abs() <= bound(name, layer, codec)).all())
    if not codec.packs:
        assert len(stored) == codec.staged_bytes(shape, dtype)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=25)
@given(shape=SHAPES, dtype=DTYPES, seed=st.integers(0, 1000))
def test_the_kernels_are_given_what_the_cpu_decodes(
    name: CodecName, shape: tuple[int, int, int, int], dtype: torch.dtype, seed: int
) -> None:
    """Reference: the CPU. Ours: the kernels' own specification, on staged rows with padding behind them."""
    codec, layers = codec_for(name, shape[3]), [numbers(seed + layer, shape, dtype) for layer in range(2)]
    num_bytes = codec.staged_bytes(shape, dtype)
    rows = torch.full((2, num_bytes + 64 - num_bytes % 64), 0x7F, dtype=torch.uint8)
    for row, layer in zip(rows, layers, strict=True):
        codec.unpack(codec.encode(layer), row[:num_bytes], shape)
    staged = codec.staged(rows, shape, dtype)
    staged.check(shape[2], shape[3], torch.device("cpu"))
    assert staged.payload.data_ptr() == rows.data_ptr(), "it is copied"
    for number, layer in enumerate(layers):
        out = torch.empty(shape, dtype=dtype)
        codec.decode(codec.encode(layer), out)
        kernels = dequantize(staged.payload[number], staged.scales[number], staged.codec)
        torch.testing.assert_close(out.float(), kernels.view(shape).to(dtype).float(), rtol=2e-2, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_tier_reads_back_what_its_codec_made_of_it(name: CodecName, tmp_path: Path) -> None:
    """By layers, whole, and into memory that is given; and a second tier copies the very bytes."""
    shape = (3, 2, 40, 2, 64)
    kv = make_kv(1, shape=shape, dtype=torch.bfloat16)
    content = TensorContent(make_key(1), kv, capture_position=3, codec=codec_spec(name, 64))
    expected = torch.empty_like(kv)
    for layer, stored in enumerate(content.layers()):
        codec_for(name, 64).decode(stored, expected[layer])
    assert torch.equal(expected, kv) == (name == "raw")
    tier = CPUTier(tmp_path, budget_bytes=1 << 22)
    tier.put(content, NEVER)
    with tier.fetch_many([make_key(1)], NEVER)[make_key(1)] as file:
        assert file.header.codec == codec_spec(name, 64)
        assert torch.equal(file.read(), expected) and torch.equal(file.read_layer(1), expected[1])
        assert torch.equal(file.read(torch.empty_like(kv)), expected)
        assert (file.in_file() is not None) == (name != "entropy")
        assert bytes(content.to_bytes()) == (tmp_path / make_key(1).file_name).read_bytes()
    tier.close()


def test_fewer_bytes() -> None:
    """Of a normal distribution's numbers, over bf16's; four bits a number is what a quarter of its spread takes."""
    layer = torch.randn(2, 512, 2, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    ratios = {name: len(codec_for(name, 128).encode(layer)) / layer.nbytes for name in NAMES}
    assert ratios["raw"] == 1 and 0.5 < ratios["int8"] < 0.51
    assert 0.5 < ratios["fp8"] < 0.54 and 0.25 < ratios["int4"] < 0.29 and 0.24 < ratios["entropy"] < 0.27


@pytest.mark.parametrize("name", [name for name in NAMES if name != "raw"])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_none_are_refused(name: CodecName, wrong: float) -> None:
    kv = make_kv(1)
    kv[1, 0, 2, 1, 3] = wrong
    with pytest.raises(InvalidRequestError, match="not finite"):
        TensorContent(make_key(1), kv, capture_position=0, codec=codec_spec(name, 8))
    raw = TensorContent(make_key(1), kv, capture_position=0)
    assert torch.equal(torch.stack(list(raw.layers())).view(torch.float32).isfinite(), kv.flatten(1).isfinite())


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_packed_bytes_that_are_damaged_raise(data: st.DataObject) -> None:
    """What a checksum would find, or a file whose header lies: nothing crashes, and nothing is allocated for it."""
    codec, shape = codec_for("entropy", 8), (2, 30, 2, 8)
    stored = codec.encode(numbers(1, shape, torch.bfloat16))
    damaged = stored.clone()
    cut = data.draw(st.integers(0, len(stored)))
    damaged = damaged[:cut]
    for place in data.draw(st.lists(st.integers(96, len(stored)), max_size=3)):
        if place < cut:
            damaged[place] = data.draw(st.integers(0, 255))
    out = torch.empty(shape, dtype=torch.bfloat16)
    try:
        codec.decode(damaged, out)
    except ValueError:
        return
    assert cut == len(stored), "a cut frame was taken for a whole one"


@pytest.mark.parametrize("name", NAMES)
def test_bytes_of_another_length_are_refused(name: CodecName) -> None:
    """Negative control: all of them are taken."""
    codec, shape = codec_for(name, 8), (2, 9, 1, 8)
    stored, out = codec.encode(numbers(1, shape, torch.bfloat16)), torch.empty(shape, dtype=torch.bfloat16)
    codec.decode(stored, out)
    for cut in (0, 5, 40, len(stored) - 3):
        with pytest.raises(ValueError):
            codec.decode(stored[:cut].clone(), out)
        with pytest.raises(ValueError):
            codec.unpack(
                stored[:cut].clone(), torch.empty(codec.staged_bytes(shape, out.dtype), dtype=torch.uint8), shape
            )


@pytest.mark.parametrize("name", [name for name in NAMES if name != "raw"])
def test_a_number_beyond_any_scale_is_refused(name: CodecName) -> None:
    """It would come back as NaN, with its whole channel or group. Negative control: 3e4 is stored."""
    layer = numbers(1, (2, 9, 1, 8), torch.float32)
    layer[0, 3, 0, 2] = 1e8
    with pytest.raises(ValueError, match="too large"):
        codec_for(name, 8).encode(layer)
    layer[0, 3, 0, 2] = 3e4
    out = torch.full_like(layer, torch.nan)
    codec_for(name, 8).decode(codec_for(name, 8).encode(layer), out)
    assert bool(out.isfinite().all())


def test_a_frame_of_another_size_is_refused() -> None:
    codec = codec_for("entropy", 8)
    stored = codec.encode(numbers(1, (2, 30, 2, 8), torch.bfloat16))
    for shape in ((2, 29, 2, 8), (2, 31, 2, 8)):
        with pytest.raises(ValueError, match="packed"):
            codec.decode(stored, torch.empty(shape, dtype=torch.bfloat16))


def test_a_file_whose_packed_layer_is_none_is_corrupt(tmp_path: Path) -> None:
    """Its checksum is right: the writer was wrong."""
    content = TensorContent(make_key(1), make_kv(1), capture_position=0, codec=codec_spec("entropy", 8))
    content._stored[1] = torch.zeros_like(content._stored[1])
    layers = tuple(layer_entry(stored) for stored in content._stored)
    content.header = content.header.model_copy(update={"layers": layers})
    tier = CPUTier(tmp_path, budget_bytes=1 << 20)
    tier.put(content, NEVER)
    with tier.fetch_many([make_key(1)], NEVER)[make_key(1)] as file:
        with pytest.raises(CorruptPassageKVError, match="layer 1"):
            file.read()
        with pytest.raises(CorruptPassageKVError, match="layer 1"):
            file.read_staged(1, torch.empty(file.header.staged_extent_bytes, dtype=torch.uint8))
    tier.close()


@pytest.mark.parametrize(
    "spec",
    [
        CodecSpec(name="int4"), CodecSpec(name="fp8"), CodecSpec(name="entropy"), CodecSpec(name="entropy", step=0.25),
        CodecSpec(name="int4", group_size=24),
    ],
)  # fmt: skip
def test_parameters_that_are_no_codecs_are_refused(spec: CodecSpec) -> None:
    with pytest.raises(ValueError, match=r"needs a|power of two"):
        codec_of(spec)


def test_a_shape_that_a_codec_cannot_store_is_refused_by_name() -> None:
    key = PassageKVKey("model", "0" * 64, "1" * 64, 0, 2)
    spec = CodecSpec(name="int4", group_size=32)
    with pytest.raises(InvalidRequestError, match=r"codec int4 cannot store .*group_size 32 does not divide half of"):
        TensorContent(key, make_kv(1, shape=(1, 2, 3, 2, 80)), capture_position=0, codec=spec)
