"""Numbers as they are."""

import math

import torch

from kvblend.store.codecs.codec import LayerShape, PassageCodec
from kvblend.triton_kernels import StagedPassage

__all__ = ["RawCodec"]


class RawCodec(PassageCodec):
    """Stores a layer's numbers in their own dtype."""

    def check(self, shape: LayerShape) -> None:
        """Every shape can be stored."""

    def staged_bytes(self, shape: LayerShape, dtype: torch.dtype) -> int:
        return math.prod(shape) * dtype.itemsize

    def encode(self, layer: torch.Tensor) -> torch.Tensor:
        return layer.contiguous().view(-1).view(torch.uint8)

    def unpack(self, stored: torch.Tensor, staged: torch.Tensor) -> None:
        staged.copy_(stored)

    def decode(self, stored: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(stored.view(out.dtype).view(out.shape))

    def staged(self, rows: torch.Tensor, shape: LayerShape, dtype: torch.dtype) -> StagedPassage:
        payload = rows[:, : self.staged_bytes(shape, dtype)].view(dtype).view(-1, *shape)
        return StagedPassage.raw(payload)
