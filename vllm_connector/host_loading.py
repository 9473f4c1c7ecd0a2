"""Passages on their way into a request's pages on a CPU: read, checked and rotated, ahead of the engine or by it."""

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Condition

import torch
from torch import Tensor

from kvblend.blend import RotaryTable
from kvblend.core.errors import CorruptPassageKVError
from kvblend.store import OpenPassageKV
from kvblend.store.buffers import empty_extents
from kvblend.vllm_connector.host_context import LayerRows
from kvblend.vllm_connector.host_pages import HostPages
from kvblend.vllm_connector.span_move import SpanMove

__all__ = ["HostLoading", "LoadedSpan", "LoadingThreads"]

MAX_THREADS = 4


class LoadingThreads:
    """Threads for `HostLoading`, besides the engine's own.

    Cores that the engine's computing leaves free load ahead of it. Where it leaves none there are no threads, and the
    engine's own loads: one more on a core that computes makes all others of its OpenMP team wait.
    """

    def __init__(self) -> None:
        self.num_threads = min(MAX_THREADS, max(0, len(os.sched_getaffinity(0)) - torch.get_num_threads()))
        # Each computes by itself. vLLM lets `torch.set_num_threads` do nothing, to keep its own thread from harm.
        self._executor = ThreadPoolExecutor(
            max(1, self.num_threads),
            thread_name_prefix="kvblend-load",
            initializer=torch._C.set_num_threads,
            initargs=(1,),
        )

    def run(self, work: Callable[[], None]) -> None:
        """Let each thread do some of a work, when it has time."""
        for _ in range(self.num_threads):
            self._executor.submit(work)

    def close(self) -> None:
        self._executor.shutdown()


@dataclass(frozen=True)
class LoadedSpan:
    """Tokens of one open file: all but its first `skipped` become `rows`."""

    file: OpenPassageKV
    delta: int
    """Positions by which it moves."""
    skipped: int
    first_row: int

    @property
    def rows(self) -> slice:
        return slice(self.first_row, self.first_row + self.file.header.num_tokens - self.skipped)


class HostLoading:
    """Loads one context, layer by layer, some layers ahead of the pass that uses them where there are cores for it.

        loading.ready(layer)     from a pass, layers ascending: all layers below it are used up
        loading.rows(layer)      what a probe of that layer looks at

    A span is read, rotated and written to its pages while it is in the core's cache. For a probe its rows are kept, in
    memory that is used again and again, so no whole context is in memory twice. Rows are the readable tokens of the
    context, ascending; `hit` of them, the first, lie in pages already, from where `read_hit(layer)` takes them.
    `slots[group]` are the rows' slots, -1 for those that are not written.
    """

    def __init__(
        self,
        threads: LoadingThreads,
        pages: HostPages,
        tables: Sequence[RotaryTable | None],
        spans: Sequence[LoadedSpan],
        slots: dict[int, Tensor],
        *,
        hit: int,
        read_hit: Callable[[int], tuple[Tensor, Tensor]],
        for_probe: bool,
    ) -> None:
        self._threads, self._pages, self._tables = threads, pages, tables
        self._hit, self._read_hit = hit, read_hit
        self._slots = {group: [own[span.rows] for span in spans] for group, own in slots.items()}
        self.failed: dict[int, CorruptPassageKVError | OSError] = {}
        """What was wrong with spans that cannot be used, by their place."""
        self.num_loaded, self.num_layers = 0, len(pages.layers)
        self._num_places = min(self.num_layers, threads.num_threads + 2 if threads.num_threads else 1)
        num_rows = len(next(iter(slots.values()))) if for_probe else 0
        self._places = [_empty_rows(pages, num_rows) for _ in range(self._num_places)] if for_probe else []
        # a worker is whoever loads: each has memory of its own
        self._workers = [self._moves(spans) for _ in range(threads.num_threads + 1)]
        self._changed = Condition()
        self._todo = deque[tuple[int, int]]()
        """(layer, span) that nobody has taken up; -1 is the local hit."""
        self._num_left = [0] * self.num_layers
        self._num_begun = 0
        self._broken: Exception | None = None
        self._parts = [*([-1] if hit and for_probe else []), *range(len(spans))]
        if threads.num_threads:
            self._begin(self._num_places)

    def ready(self, layer: int) -> None:
        """Load a layer or wait for it; nothing where it is there. Raises what broke the loading off."""
        if layer < self.num_loaded:
            return
        self._begin(layer + self._num_places)
        self._load(layer)
        with self._changed:
            self._changed.wait_for(lambda: self._num_left[layer] == 0 or self._broken is not None)
        if self._broken is not None:
            raise self._broken
        self.num_loaded = layer + 1

    def rows(self, layer: int) -> LayerRows:
        assert layer == self.num_loaded - 1, f"layer {layer} is not the one that is in use"
        return self._places[layer % self._num_places]

    def close(self) -> None:
        """Stop, and wait for what is under way. Idempotent."""
        with self._changed:
            for layer, _ in self._todo:
                self._num_left[layer] -= 1
            self._todo.clear()
            self._changed.wait_for(lambda: sum(self._num_left) == 0)

    def _begin(self, end: int) -> None:
        """Begin the layers below `end`: nobody uses what lies in their places any more."""
        begun = range(self._num_begun, min(end, self.num_layers))
        if not begun or not self._parts:
            return
        self._num_begun = begun.stop
        with self._changed:
            for layer in begun:
                self._todo += [(layer, part) for part in self._parts]
                self._num_left[layer] = len(self._parts)
        self._threads.run(self._load)

    def _load(self, only: int | None = None) -> None:
        """Take up parts until there are none, of one layer or of all. Called from any thread."""
        with torch.inference_mode():  # as the engine's own tensors are made
            while True:
                with self._changed:
                    if not self._todo or not self._workers or (only is not None and self._todo[0][0] != only):
                        return
                    layer, part = self._todo.popleft()
                    moves = self._workers.pop()
                try:
                    if self._broken is None:
                        self._load_part(layer, part, moves)
                except Exception as error:  # a thread's edge: whoever waits for a layer is told
                    self._broken = error
                with self._changed:
                    self._workers.append(moves)
                    self._num_left[layer] -= 1
                    self._changed.notify_all()

    def _load_part(self, layer: int, part: int, moves: Sequence[SpanMove]) -> None:
        place = layer % self._num_places if self._places else 0
        if part < 0:
            keys, values = self._read_hit(layer)
            rows, hit = self._places[place], self._hit
            rows.keys[:hit], rows.values[:hit] = keys, values
            rows.norms[:hit] = torch.linalg.vector_norm(values, dim=-1, dtype=torch.float32)
            return
        if part in self.failed:
            return
        try:
            moves[part].read(layer)
        except (CorruptPassageKVError, OSError) as error:
            self.failed[part] = error
            return
        keys, values = moves[part].take(self._tables[layer], place)
        slots = self._slots[self._pages.groups[layer]][part]
        if int(slots[0]) < 0:  # in blocks that others share, at the span's start if at all
            written = slots >= 0
            slots, keys, values = slots[written], keys[written], values[written]
        self._pages.write(layer, slots, keys, values)

    def _moves(self, spans: Sequence[LoadedSpan]) -> list[SpanMove]:
        """Each span's way through one worker's memory."""
        headers = [span.file.header for span in spans]
        extent = empty_extents(1, max((header.extent_bytes for header in headers), default=0))
        num_tokens = 0 if self._places else max((header.num_tokens for header in headers), default=0)
        keys = _empty_rows(self._pages, num_tokens).keys
        return [
            SpanMove(span.file, span.delta, span.skipped, extent, keys, [_cut(own, span.rows) for own in self._places])
            for span in spans
        ]


def _empty_rows(pages: HostPages, num_rows: int) -> LayerRows:
    first = pages.layers[0]
    shape = (2, num_rows, first.num_kv_heads, first.head_dim)
    keys, values = torch.empty(shape, dtype=first.layer.kv_cache.dtype)
    return LayerRows(keys, values, torch.empty(num_rows, first.num_kv_heads))


def _cut(rows: LayerRows, own: slice) -> LayerRows:
    return LayerRows(rows.keys[own], rows.values[own], rows.norms[own])
