"""Passages on their way into a request's pages on a CPU."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch

from kvblend.blend import RotaryTable, rerotate
from kvblend.core.errors import CorruptPassageKVError
from kvblend.host_kernels import ExtentSpan, HostKernels, KernelLoading, LayerTarget
from kvblend.store import OpenPassageKV
from kvblend.vllm_connector.engine.host_context import HostContext

__all__ = ["HostLoading", "LoadedSpan", "LoadingThreads", "host_loading"]

MAX_THREADS = 4


class LoadingThreads:
    """Threads that load ahead of the engine, on cores that its computing leaves free.

    Where it leaves none there are none, and the engine's own load: one more on a core that computes makes all others of
    its OpenMP team wait.
    """

    def __init__(self) -> None:
        self.num_threads = min(MAX_THREADS, max(0, len(os.sched_getaffinity(0)) - torch.get_num_threads()))
        self._executor = ThreadPoolExecutor(max(1, self.num_threads), thread_name_prefix="kvblend-load")

    def run(self, work: Callable[[], None]) -> list[Future[None]]:
        """Let each thread do some of a work, when it has time."""
        return [self._executor.submit(work) for _ in range(self.num_threads)]

    def close(self) -> None:
        self._executor.shutdown()


@dataclass(frozen=True)
class LoadedSpan:
    """Tokens of one open file, all but its first `skipped`; the first of all goes to position `start`."""

    file: OpenPassageKV
    start: int
    skipped: int

    @property
    def delta(self) -> int:
        """Positions by which it moves."""
        return self.start - self.file.header.capture_position


class HostLoading(Protocol):
    """One context's loading, layer by layer. `failed`: what was wrong with spans that cannot be used, by place."""

    num_layers: int

    def ready(self, layer: int) -> None:
        """Have a layer there, and all below it; nothing where it is."""

    @property
    def is_complete(self) -> bool: ...

    @property
    def failed(self) -> Mapping[int, str]: ...

    def close(self) -> None:
        """Stop, and wait for what is under way. Idempotent."""


def host_loading(
    threads: LoadingThreads,
    context: HostContext,
    tables: Sequence[RotaryTable | None],
    spans: Sequence[LoadedSpan],
    *,
    hit: int,
) -> HostLoading:
    """Load spans into the pages of a context, of which the first `hit` tokens lie in blocks that others share.

    tables: each layer's. By the kernels, some of it ahead, where there are kernels and all spans are files; else a
    layer when it is asked for. Raises IndexError where a span moves beyond its rotary table.
    """
    files = [span.file.in_file() for span in spans]
    kernels = context.pages.kernels
    if kernels is None or any(file is None for file in files):
        return _PlainLoading(context, tables, spans, hit=hit)
    places = [file for file in files if file is not None]
    return _AheadLoading(threads, kernels, context, tables, list(zip(spans, places, strict=True)), hit=hit)


class _AheadLoading:
    """By the kernels: on threads of their own from the start, and by the engine's where a layer is not there yet."""

    def __init__(
        self,
        threads: LoadingThreads,
        kernels: HostKernels,
        context: HostContext,
        tables: Sequence[RotaryTable | None],
        spans: Sequence[tuple[LoadedSpan, tuple[int, int]]],
        *,
        hit: int,
    ) -> None:
        distinct = _distinct(tables)
        self.num_layers, self._num_ready = len(tables), 0
        self._loading = KernelLoading(
            kernels,
            [_target(context, layer, table, distinct, hit) for layer, table in enumerate(tables)],
            [_extents(span, *place, distinct) for span, place in spans],
        )
        self._whole = threads.num_threads == 0
        self._work = threads.run(lambda: self._loading.run(self.num_layers))

    def ready(self, layer: int) -> None:
        if layer < self._num_ready:
            return
        if not self._loading.has(layer):
            # nobody loads ahead: all layers at once, which is one turn of the team
            self._loading.run(self.num_layers if self._whole else layer + 1, by_team=True)
        self._num_ready = self.num_layers if self._whole else layer + 1

    @property
    def is_complete(self) -> bool:
        return self._num_ready == self.num_layers

    @property
    def failed(self) -> Mapping[int, str]:
        return {place: f"layer {failure.layer} {failure.reason}" for place, failure in self._loading.failures().items()}

    def close(self) -> None:
        self._loading.stop()
        for work in self._work:
            if not work.cancel():
                work.result()
        self._work = []
        self._loading.close()


class _PlainLoading:
    """By the thread that asks, and PyTorch."""

    def __init__(
        self,
        context: HostContext,
        tables: Sequence[RotaryTable | None],
        spans: Sequence[LoadedSpan],
        *,
        hit: int,
    ) -> None:
        self._context, self._tables, self._spans, self._hit = context, tables, spans, hit
        self.num_layers, self._num_ready = len(tables), 0
        self.failed: dict[int, str] = {}
        for span in spans:
            for table in _distinct(tables):
                table.angles(span.delta)  # raises now, not when a layer is asked for

    def ready(self, layer: int) -> None:
        for own in range(self._num_ready, layer + 1):
            for place in range(len(self._spans)):
                if place not in self.failed:
                    self._load(own, place)
            self._num_ready = own + 1

    @property
    def is_complete(self) -> bool:
        return self._num_ready == self.num_layers

    def close(self) -> None:
        pass

    def _load(self, layer: int, place: int) -> None:
        span, pages = self._spans[place], self._context.pages
        try:
            keys, values = span.file.read_layer(layer)
        except (CorruptPassageKVError, OSError) as error:
            self.failed[place] = str(error)
            return
        table, group = self._tables[layer], pages.groups[layer]
        if table is not None:
            keys = rerotate(keys, table, delta=span.delta)
        first = min(len(keys), max(span.skipped, _write_from(self._context, group, self._hit) - span.start))
        slots = self._context.slots(group, torch.arange(span.start + first, span.start + len(keys)))
        pages.write(layer, slots, keys[first:], values[first:])


def _distinct(tables: Sequence[RotaryTable | None]) -> list[RotaryTable]:
    return list({id(table): table for table in tables if table is not None}.values())


def _write_from(context: HostContext, group: int, hit: int) -> int:
    """Scratch pages are nobody else's."""
    return 0 if group in context.pages.scratched else hit


def _target(
    context: HostContext, layer: int, table: RotaryTable | None, distinct: Sequence[RotaryTable], hit: int
) -> LayerTarget:
    pages, group = context.pages, context.pages.groups[layer]
    return LayerTarget(
        pages.host_kv(layer),
        pages.cache(layer),
        context.tables[group],
        write_from=_write_from(context, group, hit),
        rotary=None if table is None else next(place for place, own in enumerate(distinct) if own is table),
        interleaved=table is not None and table.interleaved,
    )


def _extents(span: LoadedSpan, fd: int, payload_start: int, distinct: Sequence[RotaryTable]) -> ExtentSpan:
    header = span.file.header
    return ExtentSpan(
        fd,
        payload_start,
        header.extent_bytes,
        [int(checksum, 16) for checksum in header.layer_checksums],
        header.num_tokens,
        span.start,
        span.skipped,
        [table.angles(span.delta) for table in distinct] if span.delta else [],
    )
