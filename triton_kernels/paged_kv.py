"""Paged KV as tensors: blocks addressed by strides, whatever order the attention backend keeps."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["PagedKV", "PagedLayers"]

CACHE_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class PagedKV:
    """One layer's paged cache: two views of the engine's memory, of any strides.

        keys, values  [num_blocks, block_size, num_kv_heads, head_dim]      slot = block * block_size + token in block

    Block 0 is the null block: it holds nobody's KV and is never written. Raises ValueError for views that differ.
    """

    keys: Tensor
    values: Tensor

    def __post_init__(self) -> None:
        if self.keys.dim() != 4 or self.keys.shape != self.values.shape:
            raise ValueError(
                f"keys {list(self.keys.shape)} and values {list(self.values.shape)} must both be "
                "[num_blocks, block_size, num_kv_heads, head_dim]"
            )
        if self.keys.dtype != self.values.dtype or self.keys.dtype not in CACHE_DTYPES:
            raise ValueError(
                f"a paged cache holds bf16, fp16 or fp32, not {self.keys.dtype} keys and {self.values.dtype} values"
            )
        if self.keys.device != self.values.device:
            raise ValueError(f"keys are on {self.keys.device}, values on {self.values.device}")
        if self.head_dim % 2 or not 2 <= self.head_dim <= 256:
            raise ValueError(f"head_dim is {self.head_dim}: it must be even, from 2 to 256")

    @classmethod
    def from_joined(cls, cache: Tensor) -> "PagedKV":
        """Of a cache `[num_blocks, num_kv_heads, block_size, 2 * head_dim]`, keys first: vLLM's on CUDA."""
        keys, values = cache.transpose(1, 2).chunk(2, dim=-1)
        return cls(keys, values)

    @classmethod
    def from_split(cls, cache: Tensor, *, heads_first: bool = False) -> "PagedKV":
        """Of a cache `[num_blocks, 2, block_size, num_kv_heads, head_dim]` (NHD); `heads_first`: HND."""
        keys, values = cache.unbind(1)
        return cls(keys.transpose(1, 2), values.transpose(1, 2)) if heads_first else cls(keys, values)

    @classmethod
    def from_transposed_keys(cls, cache: Tensor) -> "PagedKV":
        """Of a contiguous cache `[num_blocks, num_kv_heads, block_size, 2 * head_dim]` whose blocks hold keys as
        `[head_dim, block_size]`, then values as `[block_size, head_dim]`: vLLM's on CPU."""
        num_blocks, num_kv_heads, block_size, joined = cache.shape
        keys, values = cache.view(num_blocks, num_kv_heads, 2 * block_size, joined // 2).chunk(2, dim=2)
        keys = keys.view(num_blocks, num_kv_heads, joined // 2, block_size)
        return cls(keys.permute(0, 3, 1, 2), values.transpose(1, 2))

    @property
    def block_size(self) -> int:
        return self.keys.shape[1]

    @property
    def num_kv_heads(self) -> int:
        return self.keys.shape[2]

    @property
    def head_dim(self) -> int:
        return self.keys.shape[3]

    @property
    def layout(self) -> tuple[object, ...]:
        """All that a kernel needs to know but the address: equal for caches that one launch can serve."""
        return (
            self.keys.dtype,
            self.keys.device,
            self.keys.shape[1:],
            self.keys.stride(),
            self.values.stride(),
            self.keys.data_ptr() % 16,
            self.values.data_ptr() % 16,
        )

    def strides(self) -> dict[str, int]:
        """Strides in elements under the names that kernels give them."""
        names = ("block", "token", "head", "dim")
        keys = {f"key_{name}_stride": stride for name, stride in zip(names, self.keys.stride(), strict=True)}
        values = {f"value_{name}_stride": stride for name, stride in zip(names, self.values.stride(), strict=True)}
        return keys | values


@dataclass(frozen=True)
class PagedLayers:
    """The caches of several layers that share their block tables (one KV group), ready for one launch."""

    layers: tuple[PagedKV, ...]
    addresses: Tensor  # int64 [num_layers, k|v], bytes

    @classmethod
    def of(cls, layers: Sequence[PagedKV]) -> "PagedLayers":
        """Raises ValueError where the caches differ in shape, strides, dtype, device or alignment."""
        if not layers:
            raise ValueError("no layers")
        for index, layer in enumerate(layers):
            if layer.layout != layers[0].layout:
                raise ValueError(f"layer {index}'s layout {layer.layout} is not layer 0's {layers[0].layout}")
        addresses = torch.tensor([[layer.keys.data_ptr(), layer.values.data_ptr()] for layer in layers])
        return cls(tuple(layers), addresses.to(layers[0].keys.device))

    @property
    def first(self) -> PagedKV:
        return self.layers[0]

    @property
    def is_aligned(self) -> bool:
        """Whether each layer's keys and values begin at a multiple of 16 bytes."""
        return self.first.keys.data_ptr() % 16 == 0 and self.first.values.data_ptr() % 16 == 0
