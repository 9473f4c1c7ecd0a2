"""A passage KV outside the paged cache: what a tier holds, in device memory."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvblend.triton_kernels.codecs import SCALE_DTYPE, Codec

__all__ = ["StagedPassage"]


@dataclass(frozen=True)
class StagedPassage:
    """One passage's keys and values of all layers.

        payload  [num_layers, k|v, num_tokens, num_kv_heads, payload_dim]
        scales   fp16 [num_layers, k|v, num_tokens, or 1 where they are by channel, num_kv_heads, num_groups]

    The last three axes are contiguous; layers, keys and values may lie apart (a file has one extent a layer).
    """

    payload: Tensor
    scales: Tensor
    codec: Codec

    @classmethod
    def empty(
        cls,
        num_layers: int,
        num_tokens: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        codec: Codec,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> "StagedPassage":
        """Uninitialised memory for a passage KV; `dtype` is that of its numbers when raw."""
        codec.check(head_dim)
        axes = (num_layers, 2, num_tokens, num_kv_heads)
        payload = torch.empty((*axes, codec.payload_dim(head_dim)), dtype=codec.payload_dtype(dtype), device=device)
        scaled = (num_layers, 2, codec.num_scaled(num_tokens), num_kv_heads, codec.num_groups(head_dim))
        scales = torch.empty(scaled, dtype=SCALE_DTYPE, device=device)
        return cls(payload, scales, codec)

    @classmethod
    def raw(cls, kv: Tensor) -> "StagedPassage":
        """View `[num_layers, k|v, num_tokens, num_kv_heads, head_dim]` as a passage KV that no codec has touched."""
        return cls(kv, kv.new_empty((*kv.shape[:4], 0), dtype=SCALE_DTYPE), Codec())

    @property
    def num_layers(self) -> int:
        return self.payload.shape[0]

    @property
    def num_tokens(self) -> int:
        return self.payload.shape[2]

    def check(self, num_kv_heads: int, head_dim: int, device: torch.device) -> None:
        """Raise ValueError where this is not a passage KV of such heads on `device`."""
        self.codec.check(head_dim)
        tail = (num_kv_heads, self.codec.payload_dim(head_dim))
        if self.payload.dim() != 5 or self.payload.shape[1] != 2 or self.payload.shape[3:] != tail:
            raise ValueError(
                f"payload is {list(self.payload.shape)}, not [num_layers, 2, num_tokens, {tail[0]}, {tail[1]}]"
            )
        axes = (*self.payload.shape[:2], self.codec.num_scaled(self.num_tokens), num_kv_heads)
        expected = (*axes, self.codec.num_groups(head_dim))
        if self.scales.shape != expected or self.scales.dtype != SCALE_DTYPE:
            raise ValueError(f"scales are {self.scales.dtype} {list(self.scales.shape)}, not fp16 {list(expected)}")
        if self.payload.dtype != self.codec.payload_dtype(self.payload.dtype):
            raise ValueError(f"a payload of {self.codec.name} is not {self.payload.dtype}")
        for name, tensor in (("payload", self.payload), ("scales", self.scales)):
            if tensor.device != device:
                raise ValueError(f"{name} is on {tensor.device}, the cache on {device}")
            if tensor.numel() and not tensor[0, 0].is_contiguous():
                raise ValueError(f"{name} of one layer is not contiguous: strides {tensor.stride()}")

    def addresses(self) -> Tensor:
        """Bytes at which each layer's keys and values begin: int64 `[num_layers, k|v, payload|scales]`, on CPU."""
        layers, kinds = torch.arange(self.num_layers)[:, None], torch.arange(2)[None]

        def starts(tensor: Tensor) -> Tensor:
            return tensor.data_ptr() + (layers * tensor.stride(0) + kinds * tensor.stride(1)) * tensor.element_size()

        return torch.stack((starts(self.payload), starts(self.scales)), dim=-1)
