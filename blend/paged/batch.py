"""A pass over several requests' paged contexts: indices once, then two launches a layer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvblend.triton_kernels import ProbedContext, Queries, probe_scores, selective_attention, write_kv
from kvblend.triton_kernels.launch import to_device

if TYPE_CHECKING:
    from kvblend.blend.paged.context import PagedContextKV

__all__ = ["PagedBatch"]


class PagedBatch:
    """Rows of several contexts over the same caches.

    Positions on CPU are checked; positions that are on a GPU already, as after a selection there, are taken as they
    are and the host never waits for them. Raises ValueError where positions do not increase, and in `attend` where one
    has no block; a probe's own positions need none.
    """

    def __init__(self, contexts: "Sequence[PagedContextKV]", positions: Sequence[Tensor]) -> None:
        self._caches, device = contexts[0].caches, contexts[0].caches.device
        if any(context.caches is not self._caches for context in contexts):
            raise ValueError("the contexts of a batch are over different caches")
        if any(own.is_cuda for own in positions):
            on_device = [own.to(device, non_blocking=True) for own in positions]
            self._queries = Queries.within(on_device, num_keys=max(context.num_slots for context in contexts))
        else:
            self._queries = Queries.of(positions, device=device)
        self.num_context_tokens = [context.num_tokens for context in contexts]
        self._readable = torch.cat([context.readable for context in contexts])
        self._contexts, self._own = contexts, positions
        lengths = torch.tensor(self._queries.lengths)
        self._requests = to_device(torch.arange(len(lengths)).repeat_interleave(lengths), device)
        self._tables = {group: self._table(group) for group in self._caches.block_sizes}
        self._slots: dict[int, Tensor] = {}
        self._probed: ProbedContext | None = None
        self._scores: Tensor | None = None

    @property
    def positions(self) -> Tensor:
        return self._queries.positions

    def place(self, positions: Tensor) -> None:
        """Let as many rows stand at other `positions`, int64 `[num_rows]` on the device, as they are there.

        For a batch that is made before its rows are selected, and for one that is run again: the device alone works.
        """
        self._queries.positions.copy_(positions)
        self._slots = self._find_slots()

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not self._slots:
            self._check_blocks()
            self._slots = self._find_slots()
        cache, group = self._caches.layers[layer], self._caches.groups[layer]
        write_kv(k, v, cache, self._slots[group])
        return selective_attention(q, self._queries, cache, self._tables[group], self._caches.specs[layer])

    def probe(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self._probed is None:
            self._probed = self._probed_context()
        if self._scores is None:
            shape = (self._caches.num_kv_heads, self._probed.num_tokens)
            self._scores = torch.zeros(shape, dtype=torch.float32, device=self._caches.device)
        cache, group = self._caches.layers[layer], self._caches.groups[layer]
        out, self._scores = probe_scores(
            q,
            k,
            v,
            self._queries,
            cache,
            self._tables[group],
            self._probed,
            self._caches.specs[layer],
            scores=self._scores,
        )
        return out

    def scores(self) -> Tensor:
        assert self._scores is not None, "no layer was probed"
        total, self._scores = self._scores.sum(0), None
        return total

    def _table(self, group: int) -> Tensor:
        """Every request's blocks on the device, int32 `[num_requests, max_blocks]`."""
        rows = [context.block_tables[group] for context in self._contexts]
        return to_device(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), self._caches.device)

    def _check_blocks(self) -> None:
        for request, (context, own) in enumerate(zip(self._contexts, self._own, strict=True)):
            if not own.is_cuda and len(own) and int(own[-1]) >= context.num_slots:
                raise ValueError(
                    f"request {request} has no block for position {int(own[-1])}: its block tables hold "
                    f"{context.num_slots} tokens"
                )

    def _find_slots(self) -> dict[int, Tensor]:
        """Each row's slot, int64 `[num_rows]`, by group."""
        positions = self._queries.positions
        return {
            group: self._tables[group][self._requests, positions // size].long() * size + positions % size
            for group, size in self._caches.block_sizes.items()
        }

    def _probed_context(self) -> ProbedContext:
        device = self._caches.device
        readable = None if bool(self._readable.all()) else to_device(self._readable, device)
        return ProbedContext.of(self.num_context_tokens, readable=readable, device=device)
