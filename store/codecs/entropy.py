"""Numbers in steps of their channel's spread, entropy-coded."""

import threading

import torch
import zstandard

from kvblend.store.codecs.codec import CodecSpec, LayerShape
from kvblend.store.codecs.quantized import ChannelCodec, layer_shape
from kvblend.triton_kernels.codecs import LARGEST

__all__ = ["EntropyCodec"]

LEVEL = 1


class EntropyCodec(ChannelCodec):
    """A step of `step` standard deviations in every channel; the codes' differences from their channel's mean,
    small numbers most of them, packed by zstd.

        stored: scales fp16, mean codes int8 [2, num_kv_heads, head_dim] each, then a zstd frame of the differences

    How many bits a number takes follows from the step: at 0.25, 4 where numbers are spread as a normal distribution.
    What is staged for a device is unpacked.
    """

    def __init__(self, spec: CodecSpec) -> None:
        if spec.step is None or spec.packing is None:
            raise ValueError(f"codec {spec.name} needs a step and a packing")
        super().__init__(spec)
        self._step = spec.step

    def scales(self, numbers: torch.Tensor) -> torch.Tensor:
        # torch.std over this axis takes several times as long.
        spread = (numbers - numbers.mean(1, keepdim=True)).square_().mean(1, keepdim=True).sqrt_()
        return torch.maximum(self._step * spread, numbers.abs().amax(1, keepdim=True) / LARGEST["int8"])

    def encode(self, layer: torch.Tensor) -> torch.Tensor:
        codes, scales = self.quantize(layer.float())
        centres = codes.float().mean(1, keepdim=True).round_().to(torch.int8)
        packed = _of_thread.compressor.compress((codes - centres).numpy().data)  # modulo 256, as it is undone
        parts = (
            scales.view(torch.uint8),
            centres.view(torch.uint8),
            torch.frombuffer(bytearray(packed), dtype=torch.uint8),
        )
        return torch.cat([part.reshape(-1) for part in parts])

    def unpack(self, stored: torch.Tensor, staged: torch.Tensor, shape: LayerShape) -> None:
        scale_bytes = self._scale_bytes(shape)
        self._unpack(stored, staged[:-scale_bytes].view(torch.int8).view(shape))
        staged[-scale_bytes:] = stored[:scale_bytes]

    def decode(self, stored: torch.Tensor, out: torch.Tensor) -> None:
        scale_bytes = self._scale_bytes(layer_shape(out))
        codes = torch.empty(out.shape, dtype=torch.int8)
        self._unpack(stored, codes)
        self.dequantize(codes, stored[:scale_bytes].view(torch.float16), out)

    def _unpack(self, stored: torch.Tensor, codes: torch.Tensor) -> None:
        kinds, _, num_heads, head_dim = codes.shape
        scale_bytes, num_channels = self._scale_bytes(layer_shape(codes)), kinds * num_heads * head_dim
        _unpack(stored[scale_bytes + num_channels :], codes.view(-1).view(torch.uint8))
        centres = stored[scale_bytes : scale_bytes + num_channels].view(torch.int8)
        codes.add_(centres.view(kinds, 1, num_heads, head_dim))


def _unpack(packed: torch.Tensor, out: torch.Tensor) -> None:
    """Raises ValueError where that is not just as many bytes as `out` takes: checked before they are allocated."""
    data = packed.numpy().data
    try:
        size = zstandard.frame_content_size(data)
        if size != len(out):
            raise ValueError(f"{size} bytes are packed, not {len(out)}")
        unpacked = _of_thread.decompressor.decompress(data)
    except zstandard.ZstdError as error:
        raise ValueError(f"zstd: {error}") from error
    out.numpy().data[:] = unpacked


class _OfThread(threading.local):
    """Each thread's own: one is not safe from several."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


_of_thread = _OfThread()
