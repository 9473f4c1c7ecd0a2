"""How a layer's numbers are stored: each codec by itself, and which one a header names."""

from kvblend.core.settings import CodecName
from kvblend.store.codecs.codec import CodecSpec, LayerShape, PassageCodec
from kvblend.store.codecs.entropy import EntropyCodec
from kvblend.store.codecs.quantized import ChannelCodec, GroupCodec
from kvblend.store.codecs.raw import RawCodec

__all__ = ["CodecSpec", "LayerShape", "PassageCodec", "codec_of", "codec_spec"]

LARGEST_GROUP = 32
STEP = 0.25


def codec_of(spec: CodecSpec) -> PassageCodec:
    """The codec that a header's spec names. Raises ValueError where its parameters are none of that codec's."""
    match spec.name:
        case "raw":
            return RawCodec(spec)
        case "int8":
            return ChannelCodec(spec)
        case "entropy":
            return EntropyCodec(spec)
        case _:
            return GroupCodec(spec)


def codec_spec(name: CodecName, head_dim: int) -> CodecSpec:
    """A codec with the parameters that new files have, for heads of `head_dim`."""
    match name:
        case "fp8" | "int4":
            half = max(1, head_dim // 2)
            return CodecSpec(name=name, group_size=min(LARGEST_GROUP, half & -half))  # a power of two that divides it
        case "entropy":
            return CodecSpec(name=name, step=STEP, packing="zstd")
        case _:
            return CodecSpec(name=name)
