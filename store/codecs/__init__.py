"""How a layer's numbers are stored: each codec by itself, and which one a header names."""

from kvblend.store.codecs.codec import CodecSpec, LayerShape, PassageCodec
from kvblend.store.codecs.raw import RawCodec

__all__ = ["CodecSpec", "LayerShape", "PassageCodec", "RawCodec", "codec_of"]


def codec_of(spec: CodecSpec) -> PassageCodec:
    """The codec that a header's spec names. Raises ValueError where its parameters are none of that codec's."""
    return RawCodec(spec)
