"""Select what the question looks at."""

from dataclasses import dataclass

from torch import Tensor

from kvblend.blend.selectors.selector import highest, num_selected

__all__ = ["ProbeSelector"]


@dataclass(frozen=True)
class ProbeSelector:
    """The tokens with the highest probe score (`blend.passes.probe`): kvblend's own policy and its default."""

    needs_scores: bool = True

    def count(self, num_candidates: int, *, recompute_ratio: float) -> int:
        return num_selected(num_candidates, recompute_ratio)

    def select(self, candidates: Tensor, *, recompute_ratio: float, scores: Tensor | None) -> Tensor:
        assert scores is not None
        count = self.count(len(candidates), recompute_ratio=recompute_ratio)
        return highest(candidates, scores[candidates], count)
