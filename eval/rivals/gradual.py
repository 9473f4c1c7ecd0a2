"""Select by deviation, anew in every layer, among the tokens of the layer before.

CacheBlend's gradual filtering as the paper describes it (arXiv 2405.16444, section 4): somewhat more tokens than the
recompute ratio after the check layer, fewer with every layer, the ratio on average. The paper gives no schedule: here
it falls linearly from `1 + spread` to `1 - spread` times the ratio.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvblend.blend.selectors import Computed, LabPrompt, highest, num_selected
from kvblend.eval.rivals.check_layer import Deviation, check_layer, deviation_scores

__all__ = ["SELECTORS", "GradualSelector"]


@dataclass(frozen=True)
class GradualSelector:
    """The largest deviation of `deviation` at `layer` and at every layer behind it."""

    deviation: Deviation = "kv"
    layer: int = 1
    spread: float = 0.3

    def blend(self, prompt: LabPrompt, *, recompute_ratio: float) -> Computed:
        context, num_layers = prompt.context, prompt.model.num_layers
        everything = torch.arange(prompt.num_context, device=prompt.token_ids.device)
        candidates = prompt.candidates
        counts = [
            num_selected(len(candidates), self._ratio(layer, num_layers, recompute_ratio))
            for layer in range(num_layers)
        ]
        reused = check_layer(prompt, self.layer)
        scores = deviation_scores(self.deviation, reused, context.data[self.layer])[candidates]
        first = highest(candidates, scores, counts[self.layer])
        rows = [everything] * (self.layer + 1) + [first]
        kept = torch.ones(len(first), dtype=torch.bool, device=first.device)  # of the rows of `first`

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            nonlocal kept
            # a row that was dropped runs on beside the others, unseen: no other row reads what it does not write
            active = kept.nonzero()[:, 0]
            before = context.data[layer][:, first[active]].clone()
            context.write(layer, first[active], k[active], v[active])
            if layer > self.layer:
                deviations = deviation_scores(self.deviation, before, torch.stack((k[active], v[active])))
                best = highest(active, deviations, min(counts[layer], len(active)))
                kept = torch.zeros_like(kept)
                kept[best] = True
                rows.append(first[best])
            return context.attend(layer, q, first)

        if len(first):
            prompt.model.forward(prompt.token_ids[first], first, attend)
        rows += [first] * (num_layers + 1 - len(rows))
        return Computed(tuple(rows))

    def _ratio(self, layer: int, num_layers: int, mean: float) -> float:
        steps = max(1, num_layers - 1 - self.layer)
        return mean + min(self.spread * mean, 1 - mean) * (1 - 2 * max(0, layer - self.layer) / steps)


SELECTORS = {"gradual": GradualSelector()}
