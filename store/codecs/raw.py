"""Numbers as they are."""

import torch

from kvblend.store.codecs.codec import CodecSpec, PassageCodec
from kvblend.triton_kernels import Codec

__all__ = ["RawCodec"]


class RawCodec(PassageCodec):
    """Stores a layer's numbers in their own dtype, whatever they are."""

    def __init__(self, spec: CodecSpec) -> None:
        super().__init__(spec, Codec())

    def encode(self, layer: torch.Tensor) -> torch.Tensor:
        return layer.contiguous().view(-1).view(torch.uint8)

    def decode(self, stored: torch.Tensor, out: torch.Tensor) -> None:
        self._check_staged(stored, out)
        out.copy_(stored.view(out.dtype).view(out.shape))
