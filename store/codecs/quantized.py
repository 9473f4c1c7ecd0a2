"""Numbers in 8 or 4 bits with scales: by group of a head's dimensions, or by channel."""

import torch

from kvblend.store.codecs.codec import CodecSpec, LayerShape, PassageCodec
from kvblend.triton_kernels import Codec
from kvblend.triton_kernels.codecs import LARGEST, quantize

__all__ = ["ChannelCodec", "GroupCodec"]


class GroupCodec(PassageCodec):
    """`fp8` (E4M3) and `int4`: `group_size` neighbours of one head of one token share a scale in fp16."""

    def __init__(self, spec: CodecSpec) -> None:
        if spec.group_size is None or spec.name not in ("fp8", "int4"):
            raise ValueError(f"codec {spec.name} by group needs a group_size, and is fp8 or int4")
        super().__init__(spec, Codec(spec.name, spec.group_size))

    def encode(self, layer: torch.Tensor) -> torch.Tensor:
        payload, scales = quantize(layer, self.staged_as)
        _check_finite(scales)
        return torch.cat([payload.contiguous().view(-1).view(torch.uint8), scales.view(-1).view(torch.uint8)])

    def decode(self, stored: torch.Tensor, out: torch.Tensor) -> None:
        self._check_staged(stored, out)
        shape = layer_shape(out)
        staged = self.staged(stored[None], shape, out.dtype)
        payload, scales = staged.payload[0], staged.scales[0]
        if self.spec.name == "int4":
            low, high = out.new_empty(payload.shape, dtype=torch.int8), payload.view(torch.int8) >> 4
            torch.bitwise_left_shift(payload.view(torch.int8), 4, out=low)
            codes = torch.cat((low >> 4, high), dim=-1)
        else:
            codes = payload
        grouped = out.view(*shape[:3], -1, self.staged_as.group_size)
        grouped.copy_(codes.view(grouped.shape))
        grouped.mul_(scales[..., None])


class ChannelCodec(PassageCodec):
    """`int8`: one scale in fp16 for each dimension of each head of keys and of values, over all tokens of a passage."""

    def __init__(self, spec: CodecSpec) -> None:
        super().__init__(spec, Codec("int8_channel"))

    def encode(self, layer: torch.Tensor) -> torch.Tensor:
        codes, scales = self.quantize(layer.float())
        return torch.cat([codes.view(-1).view(torch.uint8), scales.view(-1).view(torch.uint8)])

    def decode(self, stored: torch.Tensor, out: torch.Tensor) -> None:
        self._check_staged(stored, out)
        num_codes = out.numel()
        self.dequantize(stored[:num_codes].view(torch.int8), stored[num_codes:].view(torch.float16), out)

    def quantize(self, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes int8 of the shape of `numbers` fp32, and scales fp16 [2, 1, num_kv_heads, head_dim].

        Raises ValueError where a scale would not be finite.
        """
        scales = self.scales(numbers).to(torch.float16)
        _check_finite(scales)
        divisors = scales.float().clamp_min_(torch.finfo(torch.float16).smallest_normal / 1024)
        codes = (numbers / divisors).round_().clamp_(-LARGEST["int8"], LARGEST["int8"])
        return codes.to(torch.int8), scales

    def scales(self, numbers: torch.Tensor) -> torch.Tensor:
        """[2, 1, num_kv_heads, head_dim], such that no number is beyond the largest code."""
        return numbers.abs().amax(1, keepdim=True) / LARGEST["int8"]

    @staticmethod
    def dequantize(codes: torch.Tensor, scales: torch.Tensor, out: torch.Tensor) -> None:
        """Codes int8 and scales, flat, into `out`."""
        kinds, _, num_heads, head_dim = out.shape
        torch.mul(codes.view(out.shape), scales.float().view(kinds, 1, num_heads, head_dim), out=out)


def _check_finite(scales: torch.Tensor) -> None:
    """Raise ValueError where a number was none or too large: its scale, a maximum, is not finite in fp16 either."""
    if not bool(scales.isfinite().all()):
        raise ValueError("a number of the KV is not finite, or too large for a scale in fp16")


def layer_shape(out: torch.Tensor) -> LayerShape:
    kinds, num_tokens, num_heads, head_dim = out.shape
    return kinds, num_tokens, num_heads, head_dim
