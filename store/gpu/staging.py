"""Passage KV on their way to a device, layer by layer."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import torch

from kvblend.core.errors import CorruptPassageKVError, InvalidRequestError
from kvblend.store.gpu.device_stream import current_event, make_current_wait
from kvblend.store.gpu.gpu_tier import GPUTier
from kvblend.store.gpu.landing import Landing
from kvblend.store.gpu.staging_progress import StagingProgress
from kvblend.store.open_passage import OpenPassageKV
from kvblend.triton_kernels import StagedPassage

__all__ = ["Staging"]


class Staging:
    """Open passage KV that are brought to a device: layer 0 of all first, then layer 1 of all, and so on.

        with stager.stage(files) as staging:
            for layer in range(staging.num_layers):
                failed = staging.ready(layer)       # layer + 1 is read and copied while `layer` is used
                ...                                 # the kernels on row `layer % passage.num_layers` of each passage
            staging.keep()                          # in the GPU tier, where there is one

    `passages` are the files' in order. Those that lie on the device already are views of where they lie. The others
    have room in the GPU tier or, where that has none, in a window that holds some layers at a time, so that no whole
    context lies on the device twice: there a layer is overwritten some time after the next one was asked for. Of a
    passage that failed everything is undefined. The files stay open as long as the staging. It is used by one thread,
    on the stream that was current when it was made.

    Raises InvalidRequestError where the files have not all as many layers.
    """

    def __init__(
        self, files: Sequence[OpenPassageKV], device: torch.device, *, gpu: GPUTier | None, window_bytes: int
    ) -> None:
        self.files = tuple(files)
        self.num_layers = files[0].header.num_layers if files else 0
        for file in files:
            if file.header.num_layers != self.num_layers:
                raise InvalidRequestError(
                    f"passages of {self.num_layers} and of {file.header.num_layers} layers cannot be staged together"
                )
        self.progress = StagingProgress()
        self._device, self._gpu = device, gpu
        staged = [file.staged() for file in files]
        headers = {place: file.header for place, file in enumerate(files) if staged[place] is None}
        reserved = {place: gpu.reserve(header) for place, header in headers.items()} if gpu is not None else {}
        room = {place: passage for place, passage in reserved.items() if passage is not None}
        try:
            self.landing = Landing(headers, room, num_layers=self.num_layers, window_bytes=window_bytes, device=device)
        except BaseException:
            for passage in room.values():
                passage.close()
            raise
        self.passages: tuple[StagedPassage, ...] = tuple(
            self.landing.passage(place) if there is None else there for place, there in enumerate(staged)
        )

    def ready(self, layer: int) -> frozenset[int]:
        """Let the current stream wait for a layer of all passages, read and checked. Layers come in ascending order.

        The thread itself waits until the layer's copies are issued. Whatever is to use layers below must be issued
        already. Returns the places of the passages that failed so far, in this layer or another: no layer of theirs is
        to be used. Raises IndexError, or what broke the staging off where that was no passage's fault.
        """
        if not 0 <= layer < self.num_layers:
            raise IndexError(f"layer {layer} of {self.num_layers}")
        num_used = self.progress.use_up(layer, current_event(self._device))
        assert layer >= num_used or layer + self.landing.num_rows >= self.num_layers, f"layer {layer} was used up"
        copied, failed = self.progress.wait_for_layer(layer)
        make_current_wait(self._device, copied)
        return failed

    def wait(self) -> frozenset[int]:
        """As `ready` for the last layer: what it returns is final, so that several ranks can agree on it."""
        return self.ready(self.num_layers - 1) if self.num_layers else frozenset()

    @property
    def failed(self) -> Mapping[int, CorruptPassageKVError]:
        """What was wrong with the passages that failed so far, by their place. `store.quarantine` their files."""
        return self.progress.failed

    def keep(self) -> int:
        """Let what came to the GPU tier be found there from now on; returns how many passages did.

        For after a load: it waits until all is read. No byte is moved.
        """
        if self._gpu is None:
            return 0
        failed = self.wait()
        written = self.progress.wait_for_end()
        sound = [passage for place, passage in self.landing.reserved.items() if place not in failed]
        return sum(self._gpu.commit(passage, written) for passage in sound)

    def close(self) -> None:
        """Stop reading; what was staged is not to be used any more. The files are the caller's to close. Idempotent."""
        if self.progress.is_closed:
            return
        self.progress.close()
        make_current_wait(self._device, self.progress.wait_for_end())
        for passage in self.landing.reserved.values():
            passage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
