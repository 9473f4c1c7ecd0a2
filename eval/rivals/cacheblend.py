"""Select the tokens whose reused KV deviates most at a check layer.

CacheBlend: arXiv 2405.16444, section 4, and the code that its authors published, which chooses once, by the values of
layer 1, keeps all tokens' fresh KV of that layer, and from there on masks the selected tokens and the question together
as if they were the last tokens of the prompt: all but the question's see tokens behind them. With `exact_mask` every
token sees just those before it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvblend.blend.selectors import Computed, LabPrompt, highest, num_selected
from kvblend.eval.rivals.check_layer import Deviation, check_layer, deviation_scores

__all__ = ["SELECTORS", "CacheBlendSelector"]


@dataclass(frozen=True)
class CacheBlendSelector:
    """The largest deviation of `deviation` (keys, values or both) at `layer`."""

    deviation: Deviation = "v"
    exact_mask: bool = True
    layer: int = 1

    def blend(self, prompt: LabPrompt, *, recompute_ratio: float) -> Computed:
        everything = torch.arange(prompt.num_context, device=prompt.token_ids.device)
        candidates = prompt.candidates
        reused = check_layer(prompt, self.layer)
        scores = deviation_scores(self.deviation, reused, prompt.context.data[self.layer])[candidates]
        count = num_selected(len(candidates), recompute_ratio)
        selected = highest(candidates, scores, count)
        rows = (everything,) * (self.layer + 1) + (selected,) * (prompt.model.num_layers - self.layer)
        if self.exact_mask:
            prompt.repair(selected)
            return Computed(rows)
        num_seen = len(prompt.token_ids)
        num_rows = len(selected) + num_seen - prompt.num_context
        seen_up_to = torch.arange(num_seen - num_rows, num_seen, device=selected.device)
        self._repair_with_question(prompt, selected, seen_up_to)
        return Computed(rows, seen_up_to=seen_up_to[: len(selected)])

    def _repair_with_question(self, prompt: LabPrompt, selected: Tensor, seen_up_to: Tensor) -> None:
        positions = torch.cat((selected, prompt.question_positions))

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            prompt.whole.write(layer, positions, k, v)
            return prompt.whole.attend(layer, q, positions if layer < self.layer else seen_up_to)

        prompt.model.forward(prompt.token_ids[positions], positions, attend)


SELECTORS = {
    "cacheblend_published": CacheBlendSelector("v", exact_mask=False),
    "cacheblend_v": CacheBlendSelector("v"),
    "cacheblend_k": CacheBlendSelector("k"),
    "cacheblend_kv": CacheBlendSelector("kv"),
}
