"""Select without looking: the floor that any policy must beat."""

from dataclasses import dataclass

import torch

from kvblend.blend.selectors import Computed, LabPrompt, num_selected

__all__ = ["SELECTORS", "RandomSelector"]


@dataclass(frozen=True)
class RandomSelector:
    """Reused tokens drawn uniformly, the same for the same seed and prompt length."""

    seed: int = 0

    def blend(self, prompt: LabPrompt, *, recompute_ratio: float) -> Computed:
        candidates = prompt.candidates
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randperm(len(candidates), generator=generator)[: num_selected(len(candidates), recompute_ratio)]
        return prompt.repair(candidates[drawn.sort().values.to(candidates.device)])


SELECTORS = {"random": RandomSelector()}
