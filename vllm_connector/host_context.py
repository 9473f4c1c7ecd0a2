"""Contexts of blends on a CPU, and a pass over several of them by vLLM's own attention."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from kvblend.blend.attention import probe_attention
from kvblend.vllm_connector.host_pages import HostPages

__all__ = ["HostBatch", "HostContext", "LayerRows", "RowSource"]


@dataclass(frozen=True)
class LayerRows:
    """One layer's KV of the context tokens that a probe looks at, as they were loaded.

    keys, values `[num_rows, kv_heads, head_dim]`, rotated; norms fp32 `[num_rows, kv_heads]`, each value's.
    """

    keys: Tensor
    values: Tensor
    norms: Tensor


class RowSource(Protocol):
    """What loads a context: it has a layer's rows from the pass's arrival at the layer to the next one's."""

    def rows(self, layer: int) -> LayerRows: ...


@dataclass
class HostContext:
    """One request's context in pages.

    tables[group] int32 `[num_pages]`; readable bool `[token]`: whether a token's KV is there before it is repaired.
    """

    pages: HostPages
    tables: Mapping[int, Tensor]
    readable: Tensor
    source: RowSource | None = None
    """Where a probe has its rows from: those of the readable tokens, ascending."""

    @classmethod
    def batch(cls, contexts: "Sequence[HostContext]", positions: Sequence[Tensor]) -> "HostBatch":
        return HostBatch(contexts, positions)

    def slots(self, group: int, positions: Tensor) -> Tensor:
        """Where tokens at `positions` (int64 `[n]`) lie in the caches of a group: int64 `[n]`."""
        size = self.pages.page_size(group)
        return self.tables[group][positions // size].long() * size + positions % size


class HostBatch:
    """Rows of several contexts over the same pages: indices and masks once, then one call of the engine a layer."""

    def __init__(self, contexts: Sequence[HostContext], positions: Sequence[Tensor]) -> None:
        self._contexts, self._own, self._pages = contexts, positions, contexts[0].pages
        self.positions = torch.cat(list(positions))
        self.num_context_tokens = [len(context.readable) for context in contexts]
        self._lengths = [len(own) for own in positions]
        self._slots: dict[int, Tensor] = {}
        self._metadata: dict[int, Any] = {}
        self._seen = [context.readable.nonzero()[:, 0] for context in contexts]
        self._scores = [torch.zeros(len(seen)) for seen in self._seen]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        group = self._pages.groups[layer]
        if group not in self._metadata:
            pairs = zip(self._contexts, self._own, strict=True)
            self._slots[group] = torch.cat([context.slots(group, own) for context, own in pairs])
            self._metadata[group] = self._pages.metadata(
                group, self._own, [context.tables[group] for context in self._contexts]
            )
        self._pages.write(layer, self._slots[group], k, v)
        return self._pages.attend(layer, q, k, v, self._metadata[group])

    def probe(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = []
        split = [torch.split(tensor, self._lengths) for tensor in (q, k, v)]
        for index, (context, own_q, own_k, own_v) in enumerate(zip(self._contexts, *split, strict=True)):
            assert context.source is not None, "a probe of what was not loaded"
            rows = context.source.rows(layer)
            out, scores = probe_attention(
                self._pages.specs[layer],
                own_q,
                rows.keys,
                rows.values,
                rows.norms,
                own_k,
                own_v,
                positions=self._own[index],
                k_positions=self._seen[index],
            )
            self._scores[index] += scores
            parts.append(out)
        return torch.cat(parts)

    def scores(self) -> Tensor:
        spread = []
        for context, seen, scores in zip(self._contexts, self._seen, self._scores, strict=True):
            spread.append(torch.zeros(len(context.readable)).index_copy_(0, seen, scores))
            scores.zero_()
        return torch.cat(spread)
