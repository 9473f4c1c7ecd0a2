"""Select the start of every passage, where the attention sink of a passage encoded alone lies.

EPIC's LegoLink: arXiv 2410.15332, section 4. The paper recomputes the same few tokens of every passage; here their
number follows the recompute ratio.
"""

from dataclasses import dataclass

import torch

from kvblend.blend.selectors import Computed, LabPrompt, num_selected

__all__ = ["SELECTORS", "HeadSelector"]


@dataclass(frozen=True)
class HeadSelector:
    """The first tokens of each reused passage, the same share of each."""

    def blend(self, prompt: LabPrompt, *, recompute_ratio: float) -> Computed:
        heads = [
            torch.arange(start, start + num_selected(end - start, recompute_ratio)) for start, end in prompt.passages
        ]
        return prompt.repair(torch.cat(heads).to(prompt.token_ids.device) if heads else prompt.candidates)


SELECTORS = {"head": HeadSelector()}
