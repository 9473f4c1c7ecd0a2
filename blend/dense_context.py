"""A context in one tensor: for Hugging Face models, for CPU, and as the reference of the paged one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kvblend.blend.attention import causal_attention, scored_attention
from kvblend.triton_kernels import AttentionSpec

__all__ = ["DenseBatch", "DenseContextKV"]


class DenseContextKV:
    """One request's context.

        data [layer, k | v, token, kv_head, head_dim]        readable [token]: False until a token's KV is there

    The probe does not look at tokens that are not readable: fresh and missing spans, before they are repaired.
    """

    def __init__(self, specs: Sequence[AttentionSpec], data: Tensor, readable: Tensor) -> None:
        assert data.shape[0] == len(specs) and data.shape[2] == len(readable)
        self.specs, self.data, self.readable = specs, data, readable

    @classmethod
    def batch(cls, contexts: "Sequence[DenseContextKV]", positions: Sequence[Tensor]) -> "DenseBatch":
        return DenseBatch(contexts, positions)

    def write(self, layer: int, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        """Overwrite tokens at `positions` (int64 `[n]`) with rotated keys and values `[n, kv_heads, head_dim]`."""
        self.data[layer, 0, positions] = keys
        self.data[layer, 1, positions] = values

    def attend(self, layer: int, q: Tensor, positions: Tensor) -> Tensor:
        """Attention of context tokens at strictly increasing `positions` over the context, causal by position."""
        return causal_attention(self.specs[layer], q, self.data[layer, 0], self.data[layer, 1], positions)

    def probe(self, layer: int, q: Tensor, keys: Tensor, values: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of the question's tokens, whose own keys and values are given and not kept.

        Returns (out, each context token's score, fp32 `[num_tokens]`).
        """
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


class DenseBatch:
    """Rows of several dense contexts, answered one context after the other."""

    def __init__(self, contexts: Sequence[DenseContextKV], positions: Sequence[Tensor]) -> None:
        device = contexts[0].data.device
        self._contexts, self._own = contexts, [own.to(device) for own in positions]
        self.positions = torch.cat(self._own)
        self.num_context_tokens = [len(context.readable) for context in contexts]
        self._scores = [torch.zeros(count, dtype=torch.float32, device=device) for count in self.num_context_tokens]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = []
        for context, own, own_q, own_k, own_v in self._split(q, k, v):
            context.write(layer, own, own_k, own_v)
            parts.append(context.attend(layer, own_q, own))
        return torch.cat(parts)

    def probe(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = []
        for total, (context, own, own_q, own_k, own_v) in zip(self._scores, self._split(q, k, v), strict=True):
            out, scores = context.probe(layer, own_q, own_k, own_v, own)
            total += scores
            parts.append(out)
        return torch.cat(parts)

    def scores(self) -> Tensor:
        total = torch.cat(self._scores)
        for scores in self._scores:
            scores.zero_()
        return total

    def _split(self, q: Tensor, k: Tensor, v: Tensor) -> list[tuple[DenseContextKV, Tensor, Tensor, Tensor, Tensor]]:
        lengths = [len(own) for own in self._own]
        return list(
            zip(self._contexts, self._own, *(torch.split(tensor, lengths) for tensor in (q, k, v)), strict=True)
        )
