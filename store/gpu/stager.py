"""What brings passage KV of host tiers to a device."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from types import TracebackType
from typing import Self

import torch

from kvblend.core.errors import CorruptPassageKVError
from kvblend.store.buffers import byte_view
from kvblend.store.gpu.device_stream import SideStream
from kvblend.store.gpu.gpu_tier import GPUTier
from kvblend.store.gpu.host_ring import HostRing, Piece
from kvblend.store.gpu.landing import LayerPart
from kvblend.store.gpu.staging import Staging
from kvblend.store.open_passage import OpenPassageKV

__all__ = ["Stager"]

NUM_THREADS = 4
HOST_BYTES = 60 << 20
"""Enough parts of layers that reads and copies overlap. Page-locked memory is rounded up, to 64 MiB."""
WINDOW_BYTES = 512 << 20
"""Of a 32k context of Llama-3.1-8B in bf16, four layers of 32."""


@dataclass
class _Read:
    """Part of a layer on its way to the device, by way of `piece` or straight; the future says who failed."""

    part: LayerPart
    piece: Piece | None
    future: Future[dict[int, CorruptPassageKVError]]


class Stager:
    """Stages passage KV on `device`, one staging after the other, as one worker needs it.

    Layers are read by system calls in `num_threads` threads, into page-locked memory of `host_bytes` that is used
    again and again, are checked there, and copied on a stream of their own, so that reads, copies and what the device
    computes overlap. On a CPU they are read to where they stay, unless `host_bytes` says otherwise. They land in the
    arena of `gpu`, a tier on the same device, or, where it has no room, in `window_bytes` for some layers at a time.

    Raises InvalidRequestError where the device is neither cuda nor cpu.
    """

    def __init__(
        self,
        device: torch.device | str,
        *,
        gpu: GPUTier | None = None,
        window_bytes: int = WINDOW_BYTES,
        num_threads: int = NUM_THREADS,
        host_bytes: int | None = None,
    ) -> None:
        self._gpu, self._window_bytes = gpu, window_bytes
        self._stream = SideStream(torch.device(device)) if gpu is None else gpu.stream
        self._device = self._stream.device
        is_cuda = self._device.type == "cuda"
        if host_bytes is None and is_cuda:
            host_bytes = HOST_BYTES
        self._ring = None if host_bytes is None else HostRing(host_bytes, page_locked=is_cuda)
        self._max_reads = 2 * num_threads
        self._readers = ThreadPoolExecutor(num_threads, thread_name_prefix="kvblend-stage-read")
        self._issuer = ThreadPoolExecutor(1, thread_name_prefix="kvblend-stage", initializer=self._stream.bind_thread)

    def stage(self, files: Sequence[OpenPassageKV]) -> Staging:
        """Begin to bring `files` to the device; they stay open as long as the staging.

        Raises InvalidRequestError where they have not all as many layers, torch.OutOfMemoryError where the device has
        no room for the window.
        """
        staging = Staging(files, self._device, gpu=self._gpu, window_bytes=self._window_bytes)
        self._stream.wait_for_current()  # the window's memory may be in use until there
        if staging.landing.headers:
            self._issuer.submit(self._run, staging)
        else:
            for _ in range(staging.num_layers):
                staging.progress.add_layer(None)
            staging.progress.end(None)
        return staging

    def close(self) -> None:
        """Wait for stagings under way and give the threads back."""
        self._issuer.shutdown()
        self._readers.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @torch.inference_mode()
    def _run(self, staging: Staging) -> None:
        """Begin reads in layer order, some ahead, and finish them in that order. None stands for a layer's end."""
        reads: deque[_Read | None] = deque()
        broken: Exception | None = None
        try:
            for layer in range(staging.num_layers):
                self._free_row(staging, layer, reads)
                for part in staging.landing.parts(layer):
                    if staging.progress.is_closed:
                        return
                    reads.append(self._begin(staging, part, reads))
                    while len(reads) > self._max_reads:
                        self._finish(staging, reads.popleft())
                reads.append(None)
            while reads and not staging.progress.is_closed:
                self._finish(staging, reads.popleft())
        except Exception as error:  # the thread's edge: whoever waits for a layer is told
            broken = error
        finally:
            for read in reads:
                self._abandon(read)
            staging.progress.end(self._stream.event(), broken=broken)

    def _free_row(self, staging: Staging, layer: int, reads: deque[_Read | None]) -> None:
        """Wait until the layer that was in this one's row of the window is used up."""
        num_used = layer - staging.landing.num_rows + 1
        if num_used < 1 or not staging.landing.has_window:
            return
        while reads:  # what the user waits for must have come
            self._finish(staging, reads.popleft())
        self._stream.wait_for(staging.progress.wait_for_use(num_used))

    def _begin(self, staging: Staging, part: LayerPart, reads: deque[_Read | None]) -> _Read:
        targets = list(part.extents.values())
        if self._ring is None:
            return _Read(part, None, self._readers.submit(_read_part, staging, part, targets))
        while (piece := self._ring.take(sum(len(target) for target in targets))) is None:
            if not self._ring.wait():  # all that was copied is reused already: the oldest is still being read
                self._finish(staging, reads.popleft())
        return _Read(part, piece, self._readers.submit(_read_part, staging, part, _cut(piece.memory, part)))

    def _finish(self, staging: Staging, read: _Read | None) -> None:
        if read is None:
            staging.progress.add_layer(self._stream.event())
            return
        error = read.future.exception()
        if error is not None:
            self._abandon(read)
            raise error
        for place, failure in read.future.result().items():
            staging.progress.fail(place, failure)
        if read.piece is not None and self._ring is not None:
            with self._stream.use():
                _copy(read.piece.memory, read.part)
            self._ring.release(read.piece, self._stream.event())

    def _abandon(self, read: _Read | None) -> None:
        """Wait until nothing is written to a read's memory any more, and give it back."""
        if read is None:
            return
        if not read.future.cancel():
            read.future.exception()
        if read.piece is not None and self._ring is not None:
            self._ring.release(read.piece)


def _read_part(staging: Staging, part: LayerPart, memory: Sequence[torch.Tensor]) -> dict[int, CorruptPassageKVError]:
    """Read and check extents into `memory`, of those that have not failed; returns who fails now."""
    failed = staging.progress.failed
    found = {}
    for place, extent in zip(part.extents, memory, strict=True):
        if place in failed:
            continue
        try:
            staging.files[place].read_extent(part.layer, byte_view(extent))
        except CorruptPassageKVError as error:
            found[place] = error
    return found


def _copy(memory: torch.Tensor, part: LayerPart) -> None:
    """Issue the copies of a part from host memory, where its extents lie side by side."""
    if part.whole is not None:
        part.whole.copy_(memory, non_blocking=True)
        return
    for target, source in zip(part.extents.values(), _cut(memory, part), strict=True):
        target.copy_(source, non_blocking=True)


def _cut(memory: torch.Tensor, part: LayerPart) -> list[torch.Tensor]:
    """Host memory for a part, cut into that of each extent."""
    ends = accumulate(len(extent) for extent in part.extents.values())
    return [memory[end - len(extent) : end] for end, extent in zip(ends, part.extents.values(), strict=True)]
