"""The contexts that are blended, wherever their KV lives, and how a pass asks all of them at once."""

from collections.abc import Sequence
from typing import Protocol, Self

from torch import Tensor

__all__ = ["ContextBatch", "ContextKV"]


class ContextBatch(Protocol):
    """One pass's rows of several requests, side by side: made once, asked by every layer.

    q is `[num_rows, heads, head_dim]`, k and v `[num_rows, kv_heads, head_dim]`, rotated. Between the layers of a
    batch on a GPU nothing waits for the device.
    """

    @property
    def positions(self) -> Tensor:
        """Each row's position, int64 `[num_rows]`, on the device where the contexts are."""

    @property
    def num_context_tokens(self) -> Sequence[int]:
        """Context tokens of each request."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keep the rows' keys and values, then attend from each to its request's tokens up to its own position."""

    def probe(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from question tokens, whose keys and values are not kept, and add up what they give the context."""

    def scores(self) -> Tensor:
        """Attention weight times value norm, summed over the layers that were probed, the rank's KV heads, and rows.

        fp32 `[sum(num_context_tokens)]`, averaged over the query heads that share a KV head. The next pass begins at 0.
        """


class ContextKV(Protocol):
    """Keys and values of one request's context; token i is at position i."""

    @classmethod
    def batch(cls, contexts: Sequence[Self], positions: Sequence[Tensor]) -> ContextBatch:
        """Rows of each context at its `positions` (int64 `[n]`, strictly increasing)."""
