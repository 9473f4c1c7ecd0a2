"""What brings passage KV to a device."""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from types import TracebackType
from typing import Self

import torch

from kvblend.core.errors import CorruptPassageKVError, InvalidRequestError
from kvblend.store.buffers import empty_on
from kvblend.store.gpu.device_stream import SideStream
from kvblend.store.gpu.gpu_tier import GPUTier
from kvblend.store.gpu.host_ring import HostRing, Piece
from kvblend.store.gpu.landing import Landing, LayerPart
from kvblend.store.open_passage import OpenPassageKV
from kvblend.store.stored_passage import StoredPassageKV
from kvblend.triton_kernels import StagedPassage

__all__ = ["Prepare", "Stager"]

NUM_THREADS = 4
HOST_BYTES = 60 << 20
"""Enough parts of layers that reads and copies overlap. Page-locked memory is rounded up, to 64 MiB."""
WINDOW_BYTES = 512 << 20
"""Of a 32k context of Llama-3.1-8B in bf16, four layers of 32."""

Prepare = Callable[[tuple[StagedPassage, ...]], Callable[[int], object]]
"""Given where passages come to lie, layer l in row `l % num_layers`, returns what uses a layer once that is there."""
Failures = dict[int, CorruptPassageKVError]


@dataclass
class _Read:
    """Part of a layer on its way to the device, by way of `piece` or straight; the future says who failed."""

    part: LayerPart
    piece: Piece | None
    future: Future[Failures]


class Stager:
    """Brings open passage KV to `device`: layer 0 of all first, then layer 1 of all, and so on.

    `num_threads` threads read and check layers, into page-locked memory of `host_bytes` that is used again and again.
    From there they are copied, and used, on `stream`, beside what the device computes. On a CPU they are read to where
    they stay, unless `host_bytes` says otherwise. They land in the arena of `gpu`, a tier on the same device, which
    keeps them; or, where it has no room, in a window of `window_bytes` for some layers at a time, so that no whole
    context lies on the device twice. What lies in the arena already is used where it lies.

    Raises InvalidRequestError where the device is neither cuda nor cpu, or has no room for the window.
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
        self._gpu = gpu
        self.stream = SideStream(torch.device(device)) if gpu is None else gpu.stream
        try:
            self._window = empty_on(self.stream.device, 1, window_bytes)[0]
        except RuntimeError as error:  # a GPU's torch.OutOfMemoryError is one too
            raise InvalidRequestError(
                f"{window_bytes} bytes for passages on their way cannot be had on {device}: lower vLLM's "
                f"--gpu-memory-utilization: {error}"
            ) from error
        is_cuda = self.stream.device.type == "cuda"
        if host_bytes is None and is_cuda:
            host_bytes = HOST_BYTES
        self._ring = None if host_bytes is None else HostRing(host_bytes, page_locked=is_cuda)
        self._max_reads = 2 * num_threads
        self._readers = ThreadPoolExecutor(num_threads, thread_name_prefix="kvblend-stage-read")
        self._lock = threading.Lock()

    def stage(self, files: Sequence[OpenPassageKV], prepare: Prepare) -> Mapping[int, CorruptPassageKVError]:
        """Bring `files` to the device and have each layer used, in the calling thread; on return all of it is done.

        `prepare`, and what it returns, are called with `stream` as the current one, and what they give it to do is
        ordered with what comes: a layer is there when it is used, and is overwritten after it was. Returns what was
        wrong with passages that failed, by their place: nothing of theirs is kept, and what was used of them is
        undefined. The files are the caller's to close. Stagings of several threads take turns.

        Raises InvalidRequestError where the files have not all as many layers, torch.OutOfMemoryError where the device
        has no room for the window, and whatever breaks a read off that is no passage's fault.
        """
        num_layers = files[0].header.num_layers if files else 0
        for file in files:
            if file.header.num_layers != num_layers:
                raise InvalidRequestError(
                    f"passages of {num_layers} and of {file.header.num_layers} layers cannot be staged together"
                )
        with self._lock, torch.inference_mode(), ExitStack() as closing:
            self.stream.bind_thread()
            closing.enter_context(self.stream.use())
            staged = [file.staged() for file in files]
            headers = {place: file.header for place, file in enumerate(files) if staged[place] is None}
            reserved = {}
            for place, header in headers.items():
                room = self._gpu.reserve(header) if self._gpu is not None else None
                if room is not None:
                    reserved[place] = room
                    closing.callback(room.close)
            device = self.stream.device
            landing = Landing(headers, reserved, num_layers=num_layers, window=self._window, device=device)
            use = prepare(tuple(landing.passage(place) if it is None else it for place, it in enumerate(staged)))
            failed = self._bring(files, landing, use, num_layers)
            written = self.stream.event()
            if written is not None:
                written.synchronize()
            if self._gpu is not None:
                for place, room in reserved.items():
                    if place not in failed:
                        self._gpu.commit(room, None)
        return failed

    def close(self) -> None:
        """Give the threads back; no staging may be under way."""
        self._readers.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _bring(
        self, files: Sequence[OpenPassageKV], landing: Landing, use: Callable[[int], object], num_layers: int
    ) -> Failures:
        failed: Failures = {}
        reads = deque[_Read]()
        parts = (part for layer in range(num_layers) for part in landing.parts(layer))
        coming = next(parts, None)
        try:
            for layer in range(num_layers):
                while True:
                    while coming is not None and (read := self._begin(files, failed, coming, reads, layer, landing)):
                        reads.append(read)
                        coming = next(parts, None)
                    if not reads or reads[0].part.layer > layer:
                        break
                    self._finish(reads[0], failed)
                    reads.popleft()
                use(layer)
        finally:
            for read in reads:
                self._abandon(read)
        return failed

    def _begin(
        self,
        files: Sequence[OpenPassageKV],
        failed: Failures,
        part: LayerPart,
        reads: Sequence[_Read],
        layer: int,
        landing: Landing,
    ) -> _Read | None:
        """Begin to read a part while `layer` is waited for; None where it must wait for reads that are under way."""
        if len(reads) >= self._max_reads:
            return None
        targets, piece = list(part.extents.values()), None
        if self._ring is None:
            if part.layer >= layer + landing.num_rows:  # its row is in use
                return None
        else:
            while (piece := self._ring.take(sum(len(target) for target in targets))) is None:
                if reads or not self._ring.wait():
                    return None
            targets = _cut(piece.memory, part)
        return _Read(part, piece, self._readers.submit(_read_part, files, failed, part, targets))

    def _finish(self, read: _Read, failed: Failures) -> None:
        """Wait until a part is read, and issue its copy."""
        for place, failure in read.future.result().items():
            failed.setdefault(place, failure)
        if read.piece is not None and self._ring is not None:
            _copy(read.piece.memory, read.part)
            self._ring.release(read.piece, self.stream.event())

    def _abandon(self, read: _Read) -> None:
        """Wait until nothing is written to a read's memory any more, and give it back."""
        if not read.future.cancel():
            read.future.exception()
        if read.piece is not None and self._ring is not None:
            self._ring.release(read.piece)


@torch.inference_mode()
def _read_part(
    files: Sequence[OpenPassageKV], failed: Failures, part: LayerPart, memory: Sequence[torch.Tensor]
) -> Failures:
    """Read and check extents into `memory`, of those that have not failed; returns who fails now."""
    found = {}
    for place, extent in zip(part.extents, memory, strict=True):
        if place in failed:
            continue
        try:
            file = files[place]
            assert isinstance(file, StoredPassageKV), "it is on the device, or it can be read"
            file.read_staged(part.layer, extent)
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
