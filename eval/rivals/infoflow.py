"""Select by the norm of the question's attention in the last layers.

InfoFlow KV: arXiv 2603.05353. A token's score is the norm, over the question's tokens, of the attention weight that it
receives averaged over heads; summed over the last layers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvblend.blend.attention import mean_attention_weights
from kvblend.blend.selectors import Computed, LabPrompt, highest, num_selected

__all__ = ["SELECTORS", "InfoFlowSelector"]


@dataclass(frozen=True)
class InfoFlowSelector:
    """The tokens with the largest attention norm over the last `num_layers` layers."""

    num_layers: int = 2

    def blend(self, prompt: LabPrompt, *, recompute_ratio: float) -> Computed:
        candidates = prompt.candidates
        count = num_selected(len(candidates), recompute_ratio)
        return prompt.repair(highest(candidates, self._scores(prompt)[candidates], count), num_probes=1)

    def _scores(self, prompt: LabPrompt) -> Tensor:
        context, positions = prompt.context, prompt.question_positions
        first = prompt.model.num_layers - self.num_layers
        scores = torch.zeros(prompt.num_context, device=positions.device)
        key_positions = torch.arange(len(prompt.token_ids), device=positions.device)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            nonlocal scores
            if layer >= first:
                keys = torch.cat((context.data[layer, 0], k))
                weights = mean_attention_weights(context.specs[layer], q, keys, positions, key_positions)
                scores = scores + weights[:, : prompt.num_context].norm(dim=0)
            return context.probe(layer, q, k, v, positions)[0]

        prompt.model.forward(prompt.token_ids[positions], positions, attend)
        return scores


SELECTORS = {"infoflow": InfoFlowSelector()}
