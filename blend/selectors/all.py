"""Select everything: a full prefill by way of repair."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["AllSelector"]


@dataclass(frozen=True)
class AllSelector:
    """Recompute every reused token, whatever the recompute ratio."""

    needs_scores: bool = False

    def count(self, num_candidates: int, *, recompute_ratio: float) -> int:
        return num_candidates

    def select(self, candidates: Tensor, *, recompute_ratio: float, scores: Tensor | None) -> Tensor:
        return candidates
