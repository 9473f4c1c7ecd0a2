"""Queries of several requests side by side, each at its own positions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvblend.triton_kernels.launch import to_device

__all__ = ["Queries"]


@dataclass(frozen=True)
class Queries:
    """Where a batch's queries stand; made once, used by every layer. Kernels never ask the device for a number."""

    positions: Tensor
    """int64 `[num_queries]`, strictly increasing within a request."""
    starts: Tensor
    """int64 `[num_requests + 1]`: request i's queries are `starts[i]` to `starts[i + 1]`."""
    lengths: tuple[int, ...]
    last_position: int
    """The largest position of all, or a bound on it; -1 without queries."""

    @classmethod
    def of(cls, positions: Sequence[Tensor], *, device: torch.device | str = "cpu") -> "Queries":
        """Of each request's positions, on CPU. Raises ValueError where they do not increase or begin below 0."""
        for request, own in enumerate(positions):
            if own.dim() != 1 or (len(own) and int(own[0]) < 0) or bool((own[1:] <= own[:-1]).any()):
                raise ValueError(f"positions of request {request} do not increase strictly from 0 or above")
        lengths = tuple(len(own) for own in positions)
        joined = torch.cat([own.long() for own in positions]) if positions else torch.empty(0, dtype=torch.int64)
        starts = torch.tensor([0, *lengths]).cumsum(0)
        last = max((int(own[-1]) for own in positions if len(own)), default=-1)
        target = torch.device(device)
        return cls(to_device(joined, target), to_device(starts, target), lengths, last)

    @classmethod
    def within(cls, positions: Sequence[Tensor], *, num_keys: int) -> "Queries":
        """Of positions that are on the device and stay there: nobody looks whether they increase, up to `num_keys`."""
        lengths = tuple(len(own) for own in positions)
        joined = torch.cat([own.long() for own in positions])
        return cls(joined, to_device(torch.tensor([0, *lengths]).cumsum(0), joined.device), lengths, num_keys - 1)

    @property
    def longest(self) -> int:
        """Queries of the request that has most."""
        return max(self.lengths, default=0)
