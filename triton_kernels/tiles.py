"""Tile sizes of the attention kernels, chosen on paper for an H100."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["NUMBERS_OF_PARTS", "Tiles", "capability_of", "choose_tiles", "num_splits"]

PROGRAMS_WANTED = 264
"""Two on each of an H100's 132 multiprocessors, where the device is not asked."""
KEYS_PER_SPLIT = 256
NUMBERS_OF_PARTS = (1, 2, 4, 8, 16, 32)
"""A kernel is compiled for each: few, so that all can be compiled before one is needed."""


@dataclass(frozen=True)
class Tiles:
    """ROWS queries (tokens times the heads of a KV head) against KEYS keys at a time."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


def choose_tiles(head_dim: int, dtype: torch.dtype, capability: int) -> Tiles:
    """For a GPU of `capability` (80, 90, 100: ten times its major version, plus its minor one).

    16-bit tiles keep queries and two or three stages of keys and values within 164 KB of shared memory, and a thread
    within its 255 registers: sm_80 keeps queries in registers too, so it takes fewer keys at a time. fp32 is for
    checking, not for speed.
    """
    if dtype == torch.float32:
        return Tiles(32, 32, 4, 2) if head_dim > 64 else Tiles(64, 32, 4, 2)
    if head_dim <= 128:
        return Tiles(128, 64, 8, 3) if capability >= 90 or head_dim <= 64 else Tiles(128, 32, 8, 3)
    return Tiles(64, 32, 8, 2)


def capability_of(device: torch.device) -> int:
    """The device's compute capability; sm_90 where there is none to ask."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def num_splits(programs: int, num_keys: int, device: Tensor) -> int:
    """Into how many parts, of NUMBERS_OF_PARTS, to split keys so that `programs` programs become enough for the device.

    It does not grow with `programs`, nor shrink with `num_keys`.
    """
    wanted = PROGRAMS_WANTED
    if device.is_cuda:
        wanted = 2 * torch.cuda.get_device_properties(device.device).multi_processor_count
    most = max(1, min(wanted // max(programs, 1), -(-num_keys // KEYS_PER_SPLIT)))
    return max(parts for parts in NUMBERS_OF_PARTS if parts <= most)
