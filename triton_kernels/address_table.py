"""Where a batch's passage KV begins in device memory: what the moving kernels go by."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvblend.triton_kernels.launch import to_device
from kvblend.triton_kernels.staged import StagedPassage

__all__ = ["AddressTable"]


@dataclass(frozen=True)
class AddressTable:
    """Some layers of some passages, one table for all of them; a launch may take any run of its layers."""

    addresses: Tensor
    """int64 `[num_layers, num_passages, k|v, payload|scales]`, bytes."""
    first_tokens: Tensor
    """int64 `[num_passages + 1]`: passage i's tokens are `first_tokens[i]` to `first_tokens[i + 1]` of all."""
    longest: int
    """Tokens of the passage that has most."""
    is_aligned: bool
    """Whether each payload begins at a multiple of 16 bytes."""

    @classmethod
    def of(cls, passages: Sequence[StagedPassage], layers: Sequence[int], *, device: torch.device) -> "AddressTable":
        """Of `layers` of `passages`, copied to `device` in one piece without waiting for it."""
        chosen = torch.stack([passage.addresses()[list(layers)] for passage in passages], dim=1)
        first_tokens = torch.tensor([0, *(passage.num_tokens for passage in passages)]).cumsum(0)
        table = to_device(torch.cat((chosen.flatten(), first_tokens)), device)
        return cls(
            table[: chosen.numel()].view(chosen.shape),
            table[chosen.numel() :],
            max(passage.num_tokens for passage in passages),
            not bool((chosen[..., 0] % 16).any()),
        )
