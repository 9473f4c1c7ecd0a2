"""What a codec does, and what a file's header says of it."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict

from kvblend.triton_kernels import StagedPassage

__all__ = ["CodecName", "CodecSpec", "LayerShape", "PassageCodec"]

CodecName = Literal["raw"]
LayerShape = tuple[int, int, int, int]
"""[k|v, token, kv_head, head_dim]"""


class CodecSpec(BaseModel):
    """A codec and its parameters, as a header has them."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: CodecName = "raw"


class PassageCodec(ABC):
    """How one layer's keys and values are stored. It has two stages, of which either may do nothing:

        numbers [2, num_tokens, num_kv_heads, head_dim] --quantize--> staged bytes --pack--> stored bytes

    Staged bytes are as many for every layer of a shape, and are what the kernels take on a device; how many stored
    bytes an entropy coder makes of them depends on the numbers. All tensors here are on CPU.
    """

    def __init__(self, spec: CodecSpec) -> None:
        self.spec = spec

    @abstractmethod
    def check(self, shape: LayerShape) -> None:
        """Raise ValueError where the codec cannot store layers of `shape`."""

    @abstractmethod
    def staged_bytes(self, shape: LayerShape, dtype: torch.dtype) -> int:
        """Bytes of one layer between the two stages."""

    @abstractmethod
    def encode(self, layer: torch.Tensor) -> torch.Tensor:
        """The stored bytes of `layer`, of any strides: uint8 [stored_bytes]. A raw layer may be a view of it."""

    @abstractmethod
    def unpack(self, stored: torch.Tensor, staged: torch.Tensor) -> None:
        """Undo the second stage: from uint8 [stored_bytes] into uint8 [staged_bytes].

        Raises ValueError where the bytes are not what `encode` made: then `staged` is undefined.
        """

    @abstractmethod
    def decode(self, stored: torch.Tensor, out: torch.Tensor) -> None:
        """The numbers of uint8 [stored_bytes], into `out` of the layer's shape and dtype. Raises as `unpack`."""

    @abstractmethod
    def staged(self, rows: torch.Tensor, shape: LayerShape, dtype: torch.dtype) -> StagedPassage:
        """View staged layers, uint8 [num_layers, at least staged_bytes] on any device, as what the kernels take."""

    @property
    def packs(self) -> bool:
        """Whether stored bytes are other than staged ones."""
        return False
