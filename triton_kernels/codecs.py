"""Codecs of passage KV: as it is, or quantized with one fp16 scale a group or a channel."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Codec", "dequantize", "quantize"]

LARGEST = {"fp8": 448.0, "int8": 127.0, "int8_channel": 127.0, "int4": 7.0}
"""The largest magnitude that each codec's code stands for."""

SCALE_DTYPE = torch.float16


@dataclass(frozen=True)
class Codec:
    """How numbers are stored. A group is `group_size` neighbours of one head's dimensions.

    raw: the numbers in the payload's own dtype. fp8: e4m3. int8: symmetric. int4: symmetric, -7 to 7, two to a byte:
    byte j holds dimension j in its low half and dimension j + head_dim / 2 in its high half. int8_channel: symmetric,
    with one scale for all of a passage's tokens for each dimension of each head, keys and values apart; no groups.
    """

    name: Literal["raw", "fp8", "int8", "int4", "int8_channel"] = "raw"
    group_size: int = 32

    def __post_init__(self) -> None:
        if self.name not in ("raw", *LARGEST):
            raise ValueError(f"codec {self.name!r} is none of raw, {', '.join(LARGEST)}")
        if self.group_size < 1 or self.group_size & (self.group_size - 1):
            raise ValueError(f"group_size is {self.group_size}: it must be a power of two")

    def check(self, head_dim: int) -> None:
        """Raise ValueError where groups would cross the middle of a head."""
        if self.name not in ("raw", "int8_channel") and (head_dim // 2) % self.group_size:
            raise ValueError(f"group_size {self.group_size} does not divide half of head_dim {head_dim}")

    def payload_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of the payload of numbers of `dtype`."""
        stored = {
            "fp8": torch.float8_e4m3fn, "int8": torch.int8, "int8_channel": torch.int8, "int4": torch.uint8,
        }  # fmt: skip
        return stored.get(self.name, dtype)

    def payload_dim(self, head_dim: int) -> int:
        """Payload elements of one head of one token."""
        return head_dim // 2 if self.name == "int4" else head_dim

    def num_groups(self, head_dim: int) -> int:
        """Scales of one head of one token; 0 for raw."""
        if self.name == "int8_channel":
            return head_dim
        return 0 if self.name == "raw" else head_dim // self.group_size

    def num_scaled(self, num_tokens: int) -> int:
        """Of how many tokens there are scales."""
        return 1 if self.name == "int8_channel" else num_tokens


def quantize(numbers: Tensor, codec: Codec) -> tuple[Tensor, Tensor]:
    """Quantize `[..., num_tokens, num_kv_heads, head_dim]` of any float dtype.

    Returns (payload `[..., payload_dim]`, scales fp16 `[..., num_scaled, num_kv_heads, num_groups]`). A group's, or
    channel's, scale is its largest magnitude over the codec's, rounded to fp16; where that is 0 all becomes zeros.
    """
    if codec.name == "raw":
        return numbers, numbers.new_empty((*numbers.shape[:-1], 0), dtype=SCALE_DTYPE)
    if codec.name == "int8_channel":
        scales = (numbers.float().abs().amax(-3, keepdim=True) / LARGEST[codec.name]).to(SCALE_DTYPE)
        divisors = scales.float()
        codes = torch.where(divisors > 0, numbers.float() / divisors, 0.0).clamp(-127, 127)
        return codes.round().to(torch.int8), scales
    groups = numbers.float().reshape(*numbers.shape[:-1], -1, codec.group_size)
    largest = LARGEST[codec.name]
    scales = (groups.abs().amax(-1) / largest).to(SCALE_DTYPE)
    divisors = scales.float()[..., None]
    codes = torch.where(divisors > 0, groups / divisors, 0.0).clamp(-largest, largest).flatten(-2)
    if codec.name == "fp8":
        return codes.to(torch.float8_e4m3fn), scales
    whole = codes.round().to(torch.int8)
    if codec.name == "int8":
        return whole, scales
    low, high = (whole & 15).view(torch.uint8).chunk(2, dim=-1)
    return low | (high << 4), scales


def dequantize(payload: Tensor, scales: Tensor, codec: Codec) -> Tensor:
    """Undo `quantize`, in fp32."""
    if codec.name == "raw":
        return payload.float()
    if codec.name == "int8_channel":
        return payload.float() * scales.float()
    if codec.name == "int4":
        nibbles = torch.cat((payload & 15, payload >> 4), dim=-1).to(torch.int8)
        payload = (nibbles ^ 8) - 8
    groups = payload.float().reshape(*payload.shape[:-1], -1, codec.group_size)
    return (groups * scales.float()[..., None]).flatten(-2)
