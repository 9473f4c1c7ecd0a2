"""The contract of a selector."""

from typing import Protocol

from torch import Tensor

__all__ = ["Selector", "highest", "num_selected"]


def num_selected(num_candidates: int, recompute_ratio: float) -> int:
    """How many of `num_candidates` reused tokens a ratio stands for: rounded to the nearest, never beyond all."""
    return min(num_candidates, round(num_candidates * recompute_ratio))


def highest(candidates: Tensor, scores: Tensor, count: int) -> Tensor:
    """The `count` of `candidates` (ascending) whose scores, one a candidate, are highest; ascending."""
    return candidates[scores.topk(count).indices.sort().values]


class Selector(Protocol):
    """A policy that picks tokens of reused passages."""

    @property
    def needs_scores(self) -> bool:
        """Whether `select` reads the probe's scores."""

    def select(self, candidates: Tensor, *, recompute_ratio: float, scores: Tensor | None) -> Tensor:
        """Pick among the context positions `candidates` (int64, ascending); returns a subset, ascending.

        `scores`: fp32 `[num_context_tokens]` where `needs_scores`, else None.
        """

    def count(self, num_candidates: int, *, recompute_ratio: float) -> int:
        """How many tokens `select` will return."""
