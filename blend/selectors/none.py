"""Select nothing: full reuse."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["NoneSelector"]


@dataclass(frozen=True)
class NoneSelector:
    """Take every reused token as it is, whatever the recompute ratio."""

    needs_scores: bool = False

    def count(self, num_candidates: int, *, recompute_ratio: float) -> int:
        return 0

    def select(self, candidates: Tensor, *, recompute_ratio: float, scores: Tensor | None) -> Tensor:
        return candidates[:0]
