"""Passages into a context's pages on a CPU."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from kvblend.blend import RotaryTable, rerotate
from kvblend.core.errors import CorruptPassageKVError
from kvblend.host_kernels import ExtentSpan, HostKernels, KernelLoading, LayerTarget
from kvblend.store import ReadAhead, StoredPassageKV
from kvblend.vllm_connector.engine.host_context import HostContext
from kvblend.vllm_connector.engine.pages import PlacedKV

__all__ = ["HostLoader"]

MAX_THREADS = 4


class HostLoader:
    """Brings passages in by the calling thread, and by others on cores that the engine's computing leaves free.

    By the kernels, which take what a codec stages: from a file, or from Python, which unpacks it. Without kernels by
    PyTorch, a passage read by a thread each and written by the calling one.
    """

    def __init__(self, kernels: HostKernels | None) -> None:
        self._kernels = kernels
        cores = len(os.sched_getaffinity(0))
        # where the engine computes on every core it mostly waits for a load: then all of them load
        self._num_helpers = min(MAX_THREADS, (cores - torch.get_num_threads()) or cores) - 1
        self._helpers = ThreadPoolExecutor(max(1, self._num_helpers), thread_name_prefix="kvblend-load")

    def load(self, context: HostContext, passages: Sequence[PlacedKV], *, hit: int) -> dict[int, str]:
        """As `Pages.bring`."""
        for passage in passages:
            for table in _distinct([layer.rotary for layer in context.pages.layers]):
                table.angles(passage.delta)  # raises before anything is written
        if self._kernels is not None:
            return self._load_by_kernels(self._kernels, context, passages, hit=hit)
        failed: dict[int, str] = {}
        tables = [layer.rotary for layer in context.pages.layers]
        coming = [self._helpers.submit(_read, passage, tables) for passage in passages]
        for place, (passage, future) in enumerate(zip(passages, coming, strict=True)):
            layers, reason = future.result()  # a page that two passages share has one writer
            _write(context, passage, layers, hit=hit)
            if reason is not None:
                failed[place] = reason
        return failed

    def _load_by_kernels(
        self, kernels: HostKernels, context: HostContext, passages: Sequence[PlacedKV], *, hit: int
    ) -> dict[int, str]:
        distinct = _distinct([layer.rotary for layer in context.pages.layers])
        with (
            ReadAhead([_stored(passage) for passage in passages]) as ahead,
            KernelLoading(
                kernels,
                [_target(context, layer, distinct, hit) for layer in range(len(context.pages.layers))],
                [
                    _extents(passage, distinct, partial(ahead.read_staged, place))
                    for place, passage in enumerate(passages)
                ],
                expected=(CorruptPassageKVError, OSError),
            ) as loading,
        ):
            helpers = [self._helpers.submit(loading.run) for _ in range(self._num_helpers)]
            try:
                loading.run()
            finally:
                for helper in helpers:
                    if not helper.cancel():
                        helper.result()
            return {place: f"layer {failure.layer} {failure.reason}" for place, failure in loading.failures().items()}

    def close(self) -> None:
        self._helpers.shutdown()


@torch.inference_mode()
def _read(passage: PlacedKV, tables: Sequence[RotaryTable | None]) -> tuple[list[tuple[Tensor, Tensor]], str | None]:
    """Keys, turned to where they are placed, and values of each layer up to one that fails, and why it did."""
    layers: list[tuple[Tensor, Tensor]] = []
    for index, table in enumerate(tables):
        try:
            keys, values = _stored(passage).read_layer(index)
        except (CorruptPassageKVError, OSError) as error:
            return layers, str(error)
        layers.append((keys if table is None else rerotate(keys, table, delta=passage.delta), values))
    return layers, None


def _write(context: HostContext, passage: PlacedKV, layers: Sequence[tuple[Tensor, Tensor]], *, hit: int) -> None:
    for index, (keys, values) in enumerate(layers):
        group = context.pages.layers[index].group
        stop = passage.stop
        first = min(stop, max(passage.skipped, context.pages.write_from(group, hit) - passage.start))
        positions = torch.arange(passage.start + first, passage.start + stop)
        context.pages.write(index, context.slots(group, positions), keys[first:stop], values[first:stop])


def _stored(passage: PlacedKV) -> StoredPassageKV:
    assert isinstance(passage.file, StoredPassageKV), "no passage lies on a device that is the host"
    return passage.file


def _distinct(tables: Sequence[RotaryTable | None]) -> list[RotaryTable]:
    return list({id(table): table for table in tables if table is not None}.values())


def _target(context: HostContext, index: int, distinct: Sequence[RotaryTable], hit: int) -> LayerTarget:
    pages, layer = context.pages, context.pages.layers[index]
    table = layer.rotary
    return LayerTarget(
        pages.host_kv(index),
        pages.cache(index),
        context.tables[layer.group],
        write_from=pages.write_from(layer.group, hit),
        rotary=None if table is None else next(place for place, own in enumerate(distinct) if own is table),
        interleaved=table is not None and table.interleaved,
    )


def _extents(
    passage: PlacedKV, distinct: Sequence[RotaryTable], read_staged: Callable[[int, Tensor], None]
) -> ExtentSpan:
    file, header = _stored(passage), passage.file.header
    codec = header.passage_codec
    return ExtentSpan(
        file.in_file() or read_staged,
        header.staged_extent_bytes,
        [int(layer.checksum, 16) for layer in header.layers],
        header.num_tokens,
        passage.start,
        passage.skipped,
        [table.angles(passage.delta) for table in distinct] if passage.delta else [],
        codec.staged_as,
        codec.scales_at(header.layer_shape, header.torch_dtype),
        left_out=passage.left_out,
    )
