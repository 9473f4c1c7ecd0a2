"""Tensor-parallel ranks that act alike: what one of them cannot do, none does."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from vllm.distributed import get_tp_group

from kvblend.core.errors import KVBlendError

__all__ = ["Ranks"]

Result = TypeVar("Result")


class Ranks:
    """The ranks of this worker's engine. All ask the same, in the same order; no device is waited for."""

    def __init__(self) -> None:
        group = get_tp_group()
        self._group = group.cpu_group if group.world_size > 1 else None

    def least(self, here: Sequence[int]) -> list[int]:
        """The least that any rank has of each number."""
        if self._group is None or not here:
            return list(here)
        numbers = torch.tensor(here, dtype=torch.int64)
        torch.distributed.all_reduce(numbers, op=torch.distributed.ReduceOp.MIN, group=self._group)
        return [int(number) for number in numbers.tolist()]

    def attempt(self, work: Callable[[], Result]) -> Result:
        """Do on every rank what needs no other; where it fails on one, it raises on all."""
        done: list[Result] = []
        failure: Exception | None = None
        try:
            done.append(work())
        except Exception as error:  # told to the others first
            failure = error
        sound = self.least([failure is None]) == [1]
        if failure is not None:
            raise failure
        if not sound:
            raise KVBlendError("it failed on another rank")
        return done[0]
