"""Layers of files on a disk, read before they are asked for."""

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, wait
from types import TracebackType
from typing import Self

import torch

from kvblend.store.folder.passage_file import PassageKVFile
from kvblend.store.stored_passage import StoredPassageKV

__all__ = ["ReadAhead"]

MAX_BYTES = 32 << 20
"""Read and not unpacked yet, of all files."""
PART_BYTES = 512 << 10
"""Of one read: a disk gives several layers at once sooner than one after the other."""


class ReadAhead:
    """Reads packed layers of files on a disk, layer 0 of all first, while those that came are unpacked.

    Use it as a context manager while the files are open: when it is left no read is under way. Several threads may ask
    for layers, each once, and about in the order in which they are read.
    """

    def __init__(self, files: Sequence[StoredPassageKV], *, max_bytes: int = MAX_BYTES) -> None:
        """`max_bytes`: what lies here at a time; more where the layers that are asked for take more."""
        self._files, self._room = files, max_bytes
        self._lock = threading.Lock()
        self._begun: dict[tuple[int, int], _Part] = {}
        """By the file's place and the layer, one part under several."""
        waiting = {
            place: file
            for place, file in enumerate(files)
            if isinstance(file, PassageKVFile) and file.waits_for_disk and file.header.passage_codec.packs
        }
        self._ahead = set(waiting)
        part_bytes = min(PART_BYTES, max_bytes // (2 * max(1, len(waiting))))  # one part of each, and the next of each
        parts = [part for place, file in waiting.items() for part in _parts(place, file, part_bytes)]
        self._coming = deque(sorted(parts, key=lambda part: part.start))
        self._begin()

    def read_staged(self, place: int, layer: int, memory: torch.Tensor) -> None:
        """As `read_staged` of the file at `place`."""
        with self._lock:
            part = self._take(place, layer)
        if part is None:
            self._files[place].read_staged(layer, memory)
            return
        try:
            part.file.unpack_extent(layer, part.extent(layer), memory)
        except BaseException:  # nobody asks for more of it
            with self._lock:
                self._ahead.discard(place)
                self._coming = deque(coming for coming in self._coming if coming.place != place)
            raise
        with self._lock:
            part.num_left -= 1
            if part.num_left == 0:
                self._room += part.num_bytes
                self._begin()

    def close(self) -> None:
        """Begin nothing more, and wait for what is under way."""
        with self._lock:
            self._coming.clear()
            reads = {part.read for part in self._begun.values() if part.read is not None}
            self._begun.clear()
        wait([read for read in reads if not read.cancel()])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, place: int, layer: int) -> "_Part | None":
        """The part that has the layer, begun; None where it is not read ahead."""
        if place not in self._ahead:
            return None
        while (place, layer) not in self._begun:
            self._begin_next()
        return self._begun.pop((place, layer))

    def _begin(self) -> None:
        """Begin what there is room for."""
        while self._coming and self._coming[0].num_bytes <= self._room:
            self._begin_next()

    def _begin_next(self) -> None:
        part = self._coming.popleft()
        part.read = part.file.begin_extents(part.start, part.end)
        self._room -= part.num_bytes
        self._begun |= {(part.place, layer): part for layer in range(part.start, part.end)}


class _Part:
    """Layers [start, end) of the file at `place`, which are read at once; `num_left` of them were not unpacked yet."""

    def __init__(self, place: int, file: PassageKVFile, start: int, end: int) -> None:
        self.place, self.file, self.start, self.end = place, file, start, end
        self.num_bytes = file.header.extent_start(end) - file.header.extent_start(start)
        self.num_left = end - start
        self.read: Future[torch.Tensor] | None = None

    def extent(self, layer: int) -> torch.Tensor:
        """A layer's, once it has come. Raises as the read."""
        assert self.read is not None, "it was begun"
        header = self.file.header
        start = header.extent_start(layer) - header.extent_start(self.start)
        return self.read.result()[start : start + header.extent_bytes(layer)]


def _parts(place: int, file: PassageKVFile, max_bytes: int) -> list[_Part]:
    """A file's layers in parts of at most `max_bytes`, or of one layer."""
    header, parts, start = file.header, list[_Part](), 0
    for end in range(1, header.num_layers + 1):
        if end == header.num_layers or header.extent_start(end + 1) - header.extent_start(start) > max_bytes:
            parts.append(_Part(place, file, start, end))
            start = end
    return parts
