"""What a staging brings, copied out layer by layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from kvblend.core.errors import CorruptPassageKVError
from kvblend.store import OpenPassageKV, Stager
from kvblend.triton_kernels import StagedPassage

__all__ = ["Staged", "stage"]


@dataclass
class Staged:
    """`layers[layer][place]` as they were when they were used."""

    failed: dict[int, CorruptPassageKVError] = field(default_factory=dict)
    passages: tuple[StagedPassage, ...] = ()
    layers: list[list[torch.Tensor]] = field(default_factory=list)

    def kv(self, place: int) -> torch.Tensor:
        """A passage's KV, `[layer, k|v, token, kv_head, head_dim]`."""
        return torch.stack([layer[place] for layer in self.layers])


def stage(
    stager: Stager, files: Sequence[OpenPassageKV], *, use: Callable[[int], object] = lambda layer: None
) -> Staged:
    """Stage, copy every layer when it is used, and close the files."""
    staged = Staged()

    def prepare(passages: tuple[StagedPassage, ...]) -> Callable[[int], object]:
        staged.passages = passages

        def take(layer: int) -> None:
            staged.layers.append([passage.payload[layer % passage.num_layers].clone() for passage in passages])
            use(layer)

        return take

    try:
        staged.failed = dict(stager.stage(files, prepare))
    finally:
        for file in files:
            file.close()
    return staged
