"""Numbers in steps of their channel's spread, entropy-coded."""

import torch
import zstandard

from kvblend.store.codecs.codec import CodecSpec, LayerShape
from kvblend.store.codecs.quantized import ChannelCodec, check_finite, layer_shape
from kvblend.triton_kernels.codecs import LARGEST

__all__ = ["EntropyCodec"]

LEVEL = 1


class EntropyCodec(ChannelCodec):
    """A step of `step` standard deviations in every channel, and the codes, near zero most of them, packed by zstd.

    How many bits a number takes follows from the step: at 0.25, 4 where numbers are spread as a normal distribution.
    What is staged for a device is unpacked.
    """

    def __init__(self, spec: CodecSpec) -> None:
        if spec.step is None or spec.packing is None:
            raise ValueError(f"codec {spec.name} needs a step and a packing")
        super().__init__(spec)
        self._step = spec.step

    def scales(self, numbers: torch.Tensor) -> torch.Tensor:
        spread = numbers.std(dim=1, keepdim=True, correction=0)
        return torch.maximum(self._step * spread, numbers.abs().amax(1, keepdim=True) / LARGEST["int8"])

    def encode(self, layer: torch.Tensor) -> torch.Tensor:
        check_finite(layer)
        codes, scales = self.quantize(layer.float())
        packed = zstandard.ZstdCompressor(LEVEL).compress(codes.numpy().data)
        return torch.cat([scales.view(-1).view(torch.uint8), torch.frombuffer(bytearray(packed), dtype=torch.uint8)])

    def unpack(self, stored: torch.Tensor, staged: torch.Tensor, shape: LayerShape) -> None:
        scale_bytes = self._scale_bytes(shape)
        _unpack(stored[scale_bytes:], staged[:-scale_bytes])
        staged[-scale_bytes:] = stored[:scale_bytes]

    def decode(self, stored: torch.Tensor, out: torch.Tensor) -> None:
        scale_bytes = self._scale_bytes(layer_shape(out))
        codes = torch.empty(out.numel(), dtype=torch.uint8)
        _unpack(stored[scale_bytes:], codes)
        self.dequantize(codes.view(torch.int8), stored[:scale_bytes].view(torch.float16), out)


def _unpack(packed: torch.Tensor, out: torch.Tensor) -> None:
    """Raises ValueError where that is not just as many bytes as `out` takes."""
    reader = zstandard.ZstdDecompressor().stream_reader(packed.numpy().data)
    try:
        count = reader.readinto(out.numpy().data)
        more = reader.read(1)
    except zstandard.ZstdError as error:
        raise ValueError(f"zstd: {error}") from error
    if count != len(out) or more:
        raise ValueError(f"{count} bytes or more are packed, not {len(out)}")
