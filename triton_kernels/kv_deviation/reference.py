"""What `kv_deviation` computes, in plain PyTorch."""

import torch
from torch import Tensor

__all__ = ["kv_deviation_reference"]


def kv_deviation_reference(fresh: Tensor, cached: Tensor, slots: Tensor) -> Tensor:
    """Squared distance of each token's fresh keys or values from those at its slot; 0 where it has none."""
    block_size = cached.shape[1]
    kept = slots.clamp(min=0)
    difference = fresh.float() - cached[kept // block_size, kept % block_size].float()
    return torch.where(slots >= block_size, difference.square().sum((1, 2)), 0.0)
