"""The contexts that a batch's questions probe."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvblend.triton_kernels.launch import to_device

__all__ = ["ProbedContext"]


@dataclass(frozen=True)
class ProbedContext:
    """Each request's first tokens, whose KV is in the paged cache; made once, used by every layer."""

    lengths: tuple[int, ...]
    starts: Tensor
    """int64 `[num_requests + 1]`: request i's scores are `starts[i]` to `starts[i + 1]`."""
    readable: Tensor | None
    """bool `[sum(lengths)]`: False for a token whose KV is not there; None where all is."""

    @classmethod
    def of(
        cls, lengths: Sequence[int], *, readable: Tensor | None = None, device: torch.device | str = "cpu"
    ) -> "ProbedContext":
        """Raises ValueError where `readable` is not bool `[sum(lengths)]`, contiguous, on `device`."""
        target = torch.device(device)
        if readable is not None and (
            readable.shape != (sum(lengths),) or readable.dtype != torch.bool or not readable.is_contiguous()
        ):
            raise ValueError(
                f"readable is {readable.dtype} {list(readable.shape)}, not contiguous bool [{sum(lengths)}]"
            )
        return cls(tuple(lengths), to_device(torch.tensor([0, *lengths]).cumsum(0), target), readable)

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        return max(self.lengths, default=0)
