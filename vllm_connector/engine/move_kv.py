"""Copy tokens' KV from some pages to others, on the device."""

import torch
from torch import Tensor

from kvblend.triton_kernels import Codec, PagedLayers, gather_quantize, load_rerotate
from kvblend.triton_kernels.launch import to_device

__all__ = ["move_kv"]


def move_kv(source: PagedLayers, source_slots: Tensor, target: PagedLayers, target_slots: Tensor) -> None:
    """Copy `source` at `source_slots` to `target` at `target_slots`, int64 `[n]` on CPU, layer by layer as they are.

    The caches may differ in layout. Two launches, through device memory of as many tokens.
    """
    count, device = len(source_slots), source.addresses.device
    if count == 0:
        return
    staged = gather_quantize(source, to_device(source_slots, device), [count], codec=Codec())
    still = torch.zeros(count, dtype=torch.int64, device=device)
    cos, sin = torch.ones(1, 1, device=device), torch.zeros(1, 1, device=device)
    load_rerotate(staged, target, to_device(target_slots, device), still, cos, sin, interleaved=False)
