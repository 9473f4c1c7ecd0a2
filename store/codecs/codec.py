"""What a codec does, and what a file's header says of it."""

from abc import ABC, abstractmethod
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from kvblend.core.settings import CodecName
from kvblend.triton_kernels import Codec, StagedPassage

__all__ = ["CodecSpec", "LayerShape", "PassageCodec", "check_length"]

LayerShape = tuple[int, int, int, int]
"""[k|v, token, kv_head, head_dim]"""


class CodecSpec(BaseModel):
    """A codec and its parameters, as a header has them.

    `group_size`: dimensions of one head that share a scale, of `fp8` and `int4`. `step`: of a channel's standard
    deviation, of `entropy`.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: CodecName = "raw"
    group_size: Annotated[int, Field(ge=1, le=1024)] | None = None
    step: Annotated[float, Field(gt=0.0, le=4.0)] | None = None
    packing: Literal["zstd"] | None = None


class PassageCodec(ABC):
    """How one layer's keys and values are stored. It has two stages, of which either may do nothing:

        numbers [2, num_tokens, num_kv_heads, head_dim] --quantize--> staged bytes --pack--> stored bytes

    Staged bytes are as many for every layer of a shape, and are what the kernels take on a device; how many stored
    bytes an entropy coder makes of them depends on the numbers. All tensors here are on CPU, unless it is said.
    """

    def __init__(self, spec: CodecSpec, staged_as: Codec) -> None:
        self.spec, self.staged_as = spec, staged_as

    def check(self, shape: LayerShape) -> None:
        """Raise ValueError where the codec cannot store layers of `shape`."""
        self.staged_as.check(shape[3])

    def staged_bytes(self, shape: LayerShape, dtype: torch.dtype) -> int:
        """Bytes of one layer between the two stages: payload, then scales."""
        return self._payload_bytes(shape, dtype) + self._scale_bytes(shape)

    def scales_at(self, shape: LayerShape, dtype: torch.dtype) -> int:
        """The byte of a staged layer at which its scales begin."""
        return self._payload_bytes(shape, dtype)

    @abstractmethod
    def encode(self, layer: torch.Tensor) -> torch.Tensor:
        """The stored bytes of `layer`, of any strides: uint8 [stored_bytes]. A raw layer may be a view of it.

        Raises ValueError where a number is not finite, or beyond what a scale in fp16 reaches, and the codec cannot
        store that.
        """

    def unpack(self, stored: torch.Tensor, staged: torch.Tensor, shape: LayerShape) -> None:
        """Undo the second stage: from uint8 [stored_bytes] into uint8 [staged_bytes].

        Raises ValueError where the bytes are not what `encode` made: then `staged` is undefined.
        """
        check_length(stored, len(staged))
        staged.copy_(stored)

    @abstractmethod
    def decode(self, stored: torch.Tensor, out: torch.Tensor) -> None:
        """The numbers of uint8 [stored_bytes], into `out` of the layer's shape and dtype. Raises as `unpack`."""

    def staged(self, rows: torch.Tensor, shape: LayerShape, dtype: torch.dtype) -> StagedPassage:
        """View staged layers, uint8 [num_layers, at least staged_bytes] on any device, as what the kernels take."""
        kinds, num_tokens, num_heads, head_dim = shape
        payload_bytes = self._payload_bytes(shape, dtype)
        payload = rows[:, :payload_bytes].view(self.staged_as.payload_dtype(dtype))
        scales = rows[:, payload_bytes : payload_bytes + self._scale_bytes(shape)].view(torch.float16)
        return StagedPassage(
            payload.view(-1, kinds, num_tokens, num_heads, self.staged_as.payload_dim(head_dim)),
            scales.view(
                -1, kinds, self.staged_as.num_scaled(num_tokens), num_heads, self.staged_as.num_groups(head_dim)
            )
            if scales.numel()
            else payload.new_empty((len(rows), kinds, num_tokens, num_heads, 0), dtype=torch.float16),
            self.staged_as,
        )

    @property
    def packs(self) -> bool:
        """Whether stored bytes are other than staged ones."""
        return self.spec.packing is not None

    def _check_staged(self, stored: torch.Tensor, out: torch.Tensor) -> None:
        """Raise ValueError where `stored`, not packed, is not what a layer like `out` takes."""
        kinds, num_tokens, num_heads, head_dim = out.shape
        check_length(stored, self.staged_bytes((kinds, num_tokens, num_heads, head_dim), out.dtype))

    def _payload_bytes(self, shape: LayerShape, dtype: torch.dtype) -> int:
        kinds, num_tokens, num_heads, head_dim = shape
        itemsize = self.staged_as.payload_dtype(dtype).itemsize
        return kinds * num_tokens * num_heads * self.staged_as.payload_dim(head_dim) * itemsize

    def _scale_bytes(self, shape: LayerShape) -> int:
        kinds, num_tokens, num_heads, head_dim = shape
        return 2 * kinds * self.staged_as.num_scaled(num_tokens) * num_heads * self.staged_as.num_groups(head_dim)


def check_length(stored: torch.Tensor, num_bytes: int) -> None:
    """Raise ValueError where `stored` is not `num_bytes` long."""
    if len(stored) != num_bytes:
        raise ValueError(f"{len(stored)} bytes are stored, not {num_bytes}")
