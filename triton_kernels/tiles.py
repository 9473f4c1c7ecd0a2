"""Tile sizes of the attention kernels, chosen on paper for an H100."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Tiles", "choose_tiles", "num_splits"]

PROGRAMS_WANTED = 264
"""Two on each of an H100's 132 multiprocessors, where the device is not asked."""
KEYS_PER_SPLIT = 256


@dataclass(frozen=True)
class Tiles:
    """ROWS queries (tokens times the heads of a KV head) against KEYS keys at a time."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


def choose_tiles(head_dim: int, dtype: torch.dtype) -> Tiles:
    """16-bit tiles keep queries and two or three stages of keys and values within 164 KB of shared memory (sm_80),
    and accumulators within half of the registers; fp32 is for checking, not for speed."""
    if dtype == torch.float32:
        return Tiles(32, 32, 4, 2) if head_dim > 64 else Tiles(64, 32, 4, 2)
    if head_dim <= 64:
        return Tiles(128, 64, 4, 3)
    if head_dim <= 128:
        return Tiles(128, 64, 8, 3)
    return Tiles(64, 32, 4, 2)


def num_splits(programs: int, num_keys: int, device: Tensor) -> int:
    """Into how many parts to split the keys so that `programs` programs become enough for the device."""
    wanted = PROGRAMS_WANTED
    if device.is_cuda:
        wanted = 2 * torch.cuda.get_device_properties(device.device).multi_processor_count
    return max(1, min(wanted // max(programs, 1), -(-num_keys // KEYS_PER_SPLIT), 32))
