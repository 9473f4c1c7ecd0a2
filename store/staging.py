"""Passage KV on their way to a device, layer by layer."""

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

import torch

from kvblend.core.errors import CorruptPassageKVError
from kvblend.store.buffers import staged_passage
from kvblend.store.content import StagedContent
from kvblend.store.device_stream import make_current_wait
from kvblend.store.open_passage import OpenPassageKV
from kvblend.store.staging_progress import StagingProgress
from kvblend.store.unread import Unread
from kvblend.triton_kernels import StagedPassage

__all__ = ["Staging"]


class Staging:
    """Open passage KV that are brought to `device`: layer 0 of all first, then layer 1 of all, and so on.

        with stager.stage(files) as staging:
            for layer in range(staging.num_layers):
                failed = staging.ready(layer)       # layer + 1 is read and copied while `layer` is used
                ...                                 # the kernels on staging.passages
            store.promote_staged(staging)           # into the GPU tier, where there is one

    `passages` are the files' in order. Those that lie on the device already are views of where they lie; for the
    others there is memory, a layer of which is undefined until it is `ready`, and for good if its passage failed.
    `num_layers` is that of the passage with most. The files are closed with it. A staging is used by one thread, on
    the stream that was current when it was made, which is also where its memory is reused.
    """

    def __init__(self, files: Sequence[OpenPassageKV], device: torch.device) -> None:
        self.files = tuple(files)
        self.num_layers = max((file.header.num_layers for file in files), default=0)
        self.progress = StagingProgress()
        self.is_closed = False
        self._device = device
        passages = [file.staged() for file in self.files]
        self.unread = Unread(
            {place: self.files[place].header for place, it in enumerate(passages) if it is None}, device
        )
        self.passages: tuple[StagedPassage, ...] = tuple(
            staged_passage(self.unread.extents(place), self.files[place].header) if staged is None else staged
            for place, staged in enumerate(passages)
        )

    def ready(self, layer: int) -> frozenset[int]:
        """Let the current stream wait for a layer of all passages, read and checked.

        The thread itself waits until the layer's copies are issued. Returns the places of the passages that failed so
        far, in this layer or another: no layer of theirs is to be used. Raises IndexError, or what broke the staging
        off where that was no passage's fault.
        """
        if not 0 <= layer < self.num_layers:
            raise IndexError(f"layer {layer} of {self.num_layers}")
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

    def contents(self) -> Iterator[StagedContent]:
        """Wait for all layers, and yield what was read and is sound, as what a tier on the device takes."""
        failed = self.wait()
        for place, header in self.unread.headers.items():
            if place not in failed:
                yield StagedContent(header, self.unread.extents(place))

    def close(self) -> None:
        """Stop reading and close the files; what was staged is not to be used any more. Idempotent."""
        if self.is_closed:
            return
        self.is_closed = True
        make_current_wait(self._device, self.progress.wait_for_end())
        for file in self.files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
