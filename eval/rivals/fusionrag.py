"""Select what the question's last layer asks for.

FusionRAG's query-guided selection: arXiv 2601.12904, section 3.2. The question is prefilled by itself, its queries of
the last layer are put to the reused keys of that layer, and a token's score is the sum of the weights that it gets. The
other half of the paper is what chunks are encoded behind: the chunks that are most similar to them (section 3.1).

Simplified: weights are averaged over heads and are one softmax over all chunks. In the lab's encode similar chunks are
found by their words (tf-idf), not by an embedding model, and are prefilled one behind the other, where the paper puts
together KV that each of them got by itself.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvblend.blend.attention import causal_attention, mean_attention_weights
from kvblend.blend.selectors import Computed, LabPrompt, highest, num_selected

__all__ = ["SELECTORS", "FusionRAGSelector"]


@dataclass(frozen=True)
class FusionRAGSelector:
    """The tokens with the largest sum of the question's attention in the last layer."""

    def blend(self, prompt: LabPrompt, *, recompute_ratio: float) -> Computed:
        candidates = prompt.candidates
        count = num_selected(len(candidates), recompute_ratio)
        return prompt.repair(highest(candidates, self._scores(prompt)[candidates], count), num_probes=1)

    def _scores(self, prompt: LabPrompt) -> Tensor:
        context, positions = prompt.context, prompt.question_positions
        last = prompt.model.num_layers - 1
        own = torch.arange(len(positions), device=positions.device)
        everything = torch.arange(prompt.num_context, device=positions.device)
        scores = torch.zeros(prompt.num_context, device=positions.device)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            nonlocal scores
            if layer == last:
                keys = context.data[layer, 0]
                scores = mean_attention_weights(context.specs[layer], q, keys, positions, everything).sum(0)
            return causal_attention(context.specs[layer], q, k, v, own)

        prompt.model.forward(prompt.token_ids[positions], positions, attend)
        return scores


SELECTORS = {"fusionrag": FusionRAGSelector()}
