"""Passages on their way into a request's pages on a CPU, read, checked and rotated beside the engine's thread."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from kvblend.blend import RotaryTable, rerotate_into
from kvblend.core.errors import CorruptPassageKVError
from kvblend.store import OpenPassageKV
from kvblend.store.buffers import byte_view, empty_extents, split_extents
from kvblend.vllm_connector.host_context import LayerRows
from kvblend.vllm_connector.host_pages import HostPages

__all__ = ["HostLoading", "LoadedSpan", "loading_threads"]

NUM_THREADS = max(1, min(4, os.cpu_count() or 1))
LAYERS_AHEAD = NUM_THREADS + 1
"""Layers that are in memory beside the pages at one time."""


@dataclass(frozen=True)
class LoadedSpan:
    """Tokens of one open file: all but its first `skipped` become rows `[first_row, first_row + num_rows)`."""

    file: OpenPassageKV
    delta: int
    """Positions by which it moves."""
    skipped: int
    first_row: int

    @property
    def num_rows(self) -> int:
        return self.file.header.num_tokens - self.skipped


class HostLoading:
    """Loads one context, a layer a task, `LAYERS_AHEAD` layers ahead of the pass that uses them.

        loading.ready(layer)     from a pass, layers ascending: all layers below it are used up
        loading.rows(layer)      what a probe of that layer looks at

    A layer is read into rows that are used again and again, and written from there to the pages, so no whole context
    is in memory twice. Rows are the readable tokens of the context, ascending; `hit` of them, the first, lie in pages
    already and are read by `read_hit(layer)`. `slots[group]` are the rows' slots, -1 for those that are not written.
    """

    def __init__(
        self,
        executor: ThreadPoolExecutor,
        pages: HostPages,
        tables: Sequence[RotaryTable | None],
        spans: Sequence[LoadedSpan],
        slots: dict[int, Tensor],
        *,
        hit: int,
        read_hit: Callable[[int], tuple[Tensor, Tensor]],
        with_norms: bool,
    ) -> None:
        self._executor, self._pages, self._tables, self._spans = executor, pages, tables, spans
        self._hit, self._read_hit, self._with_norms = hit, read_hit, with_norms
        self._written = {group: (own >= 0).nonzero()[:, 0] for group, own in slots.items()}
        self._slots = {group: own[self._written[group]] for group, own in slots.items()}
        self.failed: dict[int, CorruptPassageKVError | OSError] = {}
        """What was wrong with spans that cannot be used, by their place."""
        self.num_loaded = 0
        num_rows, first = len(next(iter(slots.values()))), pages.layers[0]
        shape = (min(LAYERS_AHEAD, len(pages.layers)), 2, num_rows, first.num_kv_heads, first.head_dim)
        self._rows = torch.empty(shape, dtype=first.layer.kv_cache.dtype)
        self._norms = torch.empty(shape[0], num_rows if with_norms else 0, first.num_kv_heads)
        self._tasks: list[Future[None]] = []
        self._begin(shape[0])

    @property
    def num_layers(self) -> int:
        return len(self._pages.layers)

    def ready(self, layer: int) -> None:
        """Wait for a layer; nothing where it has been waited for before. Raises what broke its task off."""
        if layer < self.num_loaded:
            return
        self._begin(layer + len(self._rows))
        self._tasks[layer].result()
        self.num_loaded = layer + 1

    def rows(self, layer: int) -> LayerRows:
        assert layer == self.num_loaded - 1, f"layer {layer} is not the one that is in use"
        place = layer % len(self._rows)
        keys, values = self._rows[place]
        return LayerRows(keys, values, self._norms[place])

    def close(self) -> None:
        """Stop, and wait for what is under way. Idempotent."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            if not task.cancelled():
                task.exception()

    def _begin(self, end: int) -> None:
        """Begin the layers below `end`: nobody uses what lies in their rows any more."""
        for layer in range(len(self._tasks), min(end, self.num_layers)):
            self._tasks.append(self._executor.submit(self._load, layer))

    def _load(self, layer: int) -> None:
        with torch.inference_mode():  # as the engine's own tensors are made
            place = layer % len(self._rows)
            keys, values = self._rows[place]
            if self._hit:
                keys[: self._hit], values[: self._hit] = self._read_hit(layer)
            for index, span in enumerate(self._spans):
                if index not in self.failed:
                    self._read(layer, index, span, keys, values)
            if self._with_norms:
                torch.linalg.vector_norm(values, dim=-1, dtype=torch.float32, out=self._norms[place])
            group = self._pages.groups[layer]
            written = self._written[group]
            if len(written) < len(keys):
                keys, values = keys[written], values[written]
            if len(written):
                self._pages.write(layer, self._slots[group], keys, values)

    def _read(self, layer: int, index: int, span: LoadedSpan, keys: Tensor, values: Tensor) -> None:
        extent = empty_extents(1, span.file.header.extent_bytes)
        try:
            span.file.read_extent(layer, byte_view(extent))
        except (CorruptPassageKVError, OSError) as error:
            self.failed[index] = error
            return
        stored_keys, stored_values = split_extents(extent, span.file.header)[0][:, span.skipped :]
        rows, table = slice(span.first_row, span.first_row + span.num_rows), self._tables[layer]
        if table is None:
            keys[rows] = stored_keys
        else:
            rerotate_into(stored_keys, table, delta=span.delta, out=keys[rows])
        values[rows] = stored_values


def loading_threads() -> ThreadPoolExecutor:
    """Threads for `HostLoading`, each of which computes by itself: teams of OpenMP threads would only fight for cores."""
    # vLLM lets `torch.set_num_threads` do nothing, so that nobody changes the engine's thread; these are ours
    alone = torch._C.set_num_threads
    return ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="kvblend-load", initializer=alone, initargs=(1,))
