"""One whole blend, from passage KV in a tier to the first token's logits."""

from collections.abc import Callable

import torch
from torch import Tensor

from kvblend.blend import Attend
from kvblend.blend.benchmark.tiers import DeviceTier, PinnedTier
from kvblend.blend.benchmark.workload import Workload
from kvblend.blend.paged import PagedContextKV, PassageLoad, PlacedPassage
from kvblend.blend.selectors import ProbeSelector

__all__ = ["Blend"]


class Blend:
    """Load, probe, select, and repair with the question in one forward.

    `prepare` is what the host does for a request: it checks, and puts tables on the device. `run` asks the device
    alone, waits for nothing, and may be run again, or captured in a CUDA graph.
    """

    def __init__(self, workload: Workload, tier: DeviceTier | PinnedTier, *, recompute_ratio: float) -> None:
        self._workload, self._tier, self._ratio = workload, tier, recompute_ratio
        self._candidates = torch.arange(workload.num_context, device=workload.model.device)
        self._question = workload.positions[workload.num_context :]
        self.selected: Tensor | None = None
        """Of the last run, int64, ascending."""

    def prepare(self) -> None:
        workload = self._workload
        # One passage waits for all: their copies are of one stream.
        waits = [self._tier.ready, *[None] * (len(self._tier.staged) - 1)]
        starts = range(0, workload.num_context, workload.passage_tokens)
        self._load = PassageLoad(
            [
                PlacedPassage(staged, workload.context, start, delta=start, ready=ready)
                for staged, start, ready in zip(self._tier.staged, starts, waits, strict=True)
            ]
        )
        question = torch.arange(workload.num_context, len(workload.token_ids))
        count = ProbeSelector().count(workload.num_context, recompute_ratio=self._ratio)
        self._probed = PagedContextKV.batch([workload.context], [question])
        self._repaired = PagedContextKV.batch([workload.context], [torch.cat((torch.arange(count), question))])

    def load(self) -> None:
        """Load alone, layer by layer."""
        self._tier.begin()
        for layer in range(self._workload.model.num_layers):
            self._load.layer(layer)

    def run(self) -> Tensor:
        """Returns the last logits, fp32 `[1, vocabulary]`."""
        workload, model = self._workload, self._workload.model
        self._tier.begin()
        before_layer = self._load.layer
        if isinstance(self._tier, DeviceTier):
            self._load.all_layers()
            before_layer = self._tier.ready
        model.forward(
            workload.token_ids[workload.num_context :], self._question, _loading(self._probed.probe, before_layer)
        )
        self.selected = ProbeSelector().select(
            self._candidates, recompute_ratio=self._ratio, scores=self._probed.scores()
        )
        self._repaired.place(torch.cat((self.selected, self._question)))
        positions = self._repaired.positions
        return model.logits(workload.token_ids[positions], positions, self._repaired.attend, num_last=1)


def _loading(attend: Attend, before_layer: Callable[[int], object]) -> Attend:
    """`attend`, with `before_layer` called in front of each layer."""

    def attend_loaded(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        before_layer(layer)
        return attend(layer, q, k, v)

    return attend_loaded
