"""One request's context KV while it is blended."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from kvblend.blend.attention import AttentionSpec, causal_attention, scored_attention

__all__ = ["ContextKV", "DenseContextKV"]


class ContextKV(Protocol):
    """Keys and values of a context, wherever they live; token i is at position i."""

    def write(self, layer: int, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        """Overwrite tokens at `positions` (int64 `[n]`) with rotated keys and values `[n, kv_heads, head_dim]`."""

    def attend(self, layer: int, q: Tensor, positions: Tensor) -> Tensor:
        """Attention of context tokens at strictly increasing `positions` over the context, causal by position."""

    def probe(self, layer: int, q: Tensor, keys: Tensor, values: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of the question's tokens, whose own keys and values are given and not kept.

        Returns (out, each context token's score, fp32 `[num_tokens]`).
        """


class DenseContextKV:
    """A context in one tensor.

        data [layer, k | v, token, kv_head, head_dim]        readable [token]: False until a token's KV is there

    The probe does not look at tokens that are not readable: fresh and missing spans, before they are repaired.
    """

    def __init__(self, specs: Sequence[AttentionSpec], data: Tensor, readable: Tensor) -> None:
        assert data.shape[0] == len(specs) and data.shape[2] == len(readable)
        self.specs, self.data, self.readable = specs, data, readable

    def write(self, layer: int, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        self.data[layer, 0, positions] = keys
        self.data[layer, 1, positions] = values

    def attend(self, layer: int, q: Tensor, positions: Tensor) -> Tensor:
        return causal_attention(self.specs[layer], q, self.data[layer, 0], self.data[layer, 1], positions)

    def probe(self, layer: int, q: Tensor, keys: Tensor, values: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.readable.nonzero()[:, 0]
        whole = len(seen) == len(self.readable)
        context_keys, context_values = self.data[layer, 0], self.data[layer, 1]
        if not whole:
            context_keys, context_values = context_keys[seen], context_values[seen]
        out, scores = scored_attention(
            self.specs[layer],
            q,
            torch.cat((context_keys, keys)),
            torch.cat((context_values, values)),
            positions,
            torch.cat((seen, positions)),
        )
        if whole:
            return out, scores[: len(seen)]
        spread = scores.new_zeros(len(self.readable))
        spread[seen] = scores[: len(seen)]
        return out, spread
