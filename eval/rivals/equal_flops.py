"""The probe with as much work as CacheBlend: what its check layers cost is spent on more selected tokens."""

from dataclasses import dataclass

import torch

from kvblend.blend.selectors import Computed, LabPrompt, num_selected

__all__ = ["SELECTORS", "EqualFlopsProbe"]


@dataclass(frozen=True)
class EqualFlopsProbe:
    """The highest probe scores, as many tokens as CacheBlend's FLOPs at the recompute ratio pay for.

    CacheBlend's are counted with a check at `layer` and selected tokens that lie evenly among the candidates.
    """

    layer: int = 1

    def blend(self, prompt: LabPrompt, *, recompute_ratio: float) -> Computed:
        candidates, flops = prompt.candidates, prompt.flops
        everything = torch.arange(prompt.num_context, device=candidates.device)
        count = num_selected(len(candidates), recompute_ratio)
        spread = candidates[torch.linspace(0, max(0, len(candidates) - 1), count).round().long()]
        rows = (everything,) * (self.layer + 1) + (spread,) * (flops.num_layers - self.layer)
        budget = flops.computed(Computed(rows)) - flops.tokens(prompt.question_positions)
        ranked = candidates[prompt.probe()[candidates].sort(descending=True).indices]
        low, high = 0, len(ranked)
        while low < high:
            middle = (low + high + 1) // 2
            if flops.tokens(ranked[:middle]) <= budget:
                low = middle
            else:
                high = middle - 1
        return prompt.repair(ranked[:low].sort().values, num_probes=1)


SELECTORS = {"probe_equal_flops": EqualFlopsProbe()}
