"""The model as blending needs it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from kvblend.blend.flops import ModelFlops

__all__ = ["Attend", "BlendModel"]

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q [n, heads, head_dim], k [n, kv_heads, head_dim], v like k) -> out like q; q and k are rotated."""


class BlendModel(Protocol):
    """A decoder whose attention can be answered from outside."""

    @property
    def num_layers(self) -> int: ...

    @property
    def flops(self) -> "ModelFlops":
        """What a token costs, on all ranks together."""

    def forward(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> None:
        """Run every layer on `token_ids` at `positions` (both int64 `[n]`), asking `attend` for each attention.

        The caller keeps what it needs of k and v; hidden states are dropped.
        """

    def reduce_scores(self, scores: Tensor) -> Tensor:
        """Sum `scores` over tensor-parallel ranks, so that every rank selects the same tokens."""
