"""Contexts of blends on a CPU, and a pass over several of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from kvblend.vllm_connector.engine.host_pages import HostPages

__all__ = ["HostBatch", "HostContext"]


@dataclass
class HostContext:
    """One request's context in pages.

    tables[group] int32 `[num_pages]`; readable bool `[token]`: whether a token's KV is there before it is repaired.
    """

    pages: "HostPages"
    tables: Mapping[int, Tensor]
    readable: Tensor

    @classmethod
    def batch(cls, contexts: "Sequence[HostContext]", positions: Sequence[Tensor]) -> "HostBatch":
        return HostBatch(contexts, positions)

    def slots(self, group: int, positions: Tensor) -> Tensor:
        """Where tokens at `positions` (int64 `[n]`) lie in the caches of a group: int64 `[n]`."""
        size = self.pages.page_size(group)
        return self.tables[group][positions // size].long() * size + positions % size


class HostBatch:
    """Rows of several contexts over the same pages: indices once, then one call a layer."""

    def __init__(self, contexts: Sequence[HostContext], positions: Sequence[Tensor]) -> None:
        self._contexts, self._own, self._pages = contexts, positions, contexts[0].pages
        self.positions = torch.cat(list(positions))
        self.num_context_tokens = [len(context.readable) for context in contexts]
        self._lengths = [len(own) for own in positions]
        self._slots: dict[int, Tensor] = {}
        self._rows: dict[int, Any] = {}
        self._scores = [torch.zeros(count) for count in self.num_context_tokens]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        group = self._pages.layers[layer].group
        if group not in self._rows:
            pairs = zip(self._contexts, self._own, strict=True)
            self._slots[group] = torch.cat([context.slots(group, own) for context, own in pairs])
            self._rows[group] = self._pages.rows(
                group, self._own, [context.tables[group] for context in self._contexts]
            )
        self._pages.write(layer, self._slots[group], k, v)
        return self._pages.attend(layer, q, k, v, self._rows[group])

    def probe(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        group, parts = self._pages.layers[layer].group, []
        split = [torch.split(tensor, self._lengths) for tensor in (q, k, v)]
        for context, own, scores, own_q, own_k, own_v in zip(
            self._contexts, self._own, self._scores, *split, strict=True
        ):
            parts.append(
                self._pages.probe(
                    layer,
                    own_q,
                    own_k,
                    own_v,
                    positions=own,
                    table=context.tables[group],
                    readable=context.readable,
                    scores=scores,
                )
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def scores(self) -> Tensor:
        scores = torch.cat(self._scores)
        for own in self._scores:
            own.zero_()
        return scores
