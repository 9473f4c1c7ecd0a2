"""The contract of the lab's selectors, which may run layers of their own; the serving ones are wrapped into it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, Self

import torch
from torch import Tensor

from kvblend.blend.dense_context import DenseContextKV
from kvblend.blend.model import BlendModel
from kvblend.blend.passes import Rows, probe, repair
from kvblend.blend.selectors.selector import Selector

if TYPE_CHECKING:
    from kvblend.blend.flops import ModelFlops

__all__ = ["Computed", "LabPrompt", "LabSelector", "Serving"]


@dataclass(frozen=True)
class Computed:
    """What a blend computed.

    `rows[i]`: positions (int64, ascending) whose keys and values were computed in layer i, and written; those of
    `rows[i + 1]`, a subset, attended in layer i and went on. The last entry is what went through all layers.
    `num_probes`: forwards of the question over the reused context.
    `seen_up_to`: for each of the last entry, the last position it saw, where that is not its own.
    """

    rows: tuple[Tensor, ...]
    num_probes: int = 0
    seen_up_to: Tensor | None = None

    @classmethod
    def everywhere(cls, positions: Tensor, *, num_layers: int, num_probes: int = 0) -> Self:
        """The same tokens in every layer."""
        return cls((positions,) * (num_layers + 1), num_probes)

    @property
    def selected(self) -> Tensor:
        return self.rows[-1]


@dataclass(frozen=True)
class LabPrompt:
    """A prompt laid out for full reuse, to be blended in place.

    `whole` holds the context's KV, and room for the question's behind it; `token_ids` (int64) are the prompt's;
    `passages` are the spans `(start, end)` of reused tokens, `encode_contexts` what each was encoded behind.
    """

    model: BlendModel
    whole: DenseContextKV
    token_ids: Tensor
    num_context: int
    passages: Sequence[tuple[int, int]]
    encode_contexts: Sequence[tuple[int, ...]]
    flops: "ModelFlops"

    @property
    def context(self) -> DenseContextKV:
        """The context alone, over the same memory."""
        return DenseContextKV(
            self.whole.specs, self.whole.data[:, :, : self.num_context], self.whole.readable[: self.num_context]
        )

    @property
    def candidates(self) -> Tensor:
        """Positions of reused tokens, ascending."""
        reused = torch.zeros(self.num_context, dtype=torch.bool, device=self.token_ids.device)
        for start, end in self.passages:
            reused[start:end] = True
        return reused.nonzero()[:, 0]

    @property
    def question_positions(self) -> Tensor:
        return torch.arange(self.num_context, len(self.token_ids), device=self.token_ids.device)

    def rows(self, positions: Tensor) -> Rows:
        return Rows(self.context, self.token_ids[positions], positions)

    def probe(self) -> Tensor:
        """Each context token's probe score, fp32 `[num_context]`."""
        return probe(self.model, [self.rows(self.question_positions)])[0]

    def repair(self, positions: Tensor, *, num_probes: int = 0) -> Computed:
        """Recompute the tokens at `positions` in all layers."""
        if len(positions):
            repair(self.model, [self.rows(positions)])
        return Computed.everywhere(positions, num_layers=self.flops.num_layers, num_probes=num_probes)

    def copy(self) -> Self:
        """The same prompt over memory of its own."""
        whole = DenseContextKV(self.whole.specs, self.whole.data.clone(), self.whole.readable.clone())
        return replace(self, whole=whole)


class LabSelector(Protocol):
    """A policy that picks tokens of reused passages, running whatever part of the model it needs for it."""

    def blend(self, prompt: LabPrompt, *, recompute_ratio: float) -> Computed:
        """Recompute about `recompute_ratio` of the reused tokens in `prompt.context`; returns what was computed."""


@dataclass(frozen=True)
class Serving:
    """A serving selector in the lab: what the connector does with it."""

    selector: Selector

    def blend(self, prompt: LabPrompt, *, recompute_ratio: float) -> Computed:
        candidates = prompt.candidates
        if not self.selector.needs_scores:
            return prompt.repair(self.selector.select(candidates, recompute_ratio=recompute_ratio, scores=None))
        if not 0.0 < recompute_ratio < 1.0:
            return prompt.repair(candidates if recompute_ratio == 1.0 else candidates[:0])
        scores = prompt.probe()
        selected = self.selector.select(candidates, recompute_ratio=recompute_ratio, scores=scores)
        return prompt.repair(selected, num_probes=1)
