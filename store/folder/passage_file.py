"""An open passage KV file."""

import io
import os
import stat
from collections.abc import Callable
from concurrent.futures import Executor, Future
from itertools import pairwise
from pathlib import Path

import torch
import xxhash

from kvblend.core.errors import CorruptPassageKVError
from kvblend.store.buffers import byte_view, empty_extents
from kvblend.store.format import EXTENT_ALIGNMENT, PassageKVHeader
from kvblend.store.stored_passage import StoredPassageKV

__all__ = ["PassageKVFile", "read_header"]

PARALLEL_BYTES = 4 << 20
"""A smaller file is read by the calling thread alone."""

PutAside = Callable[[Path, int, str], bool]
"""Quarantines the file at a path if it still is the one that the descriptor has open, for a reason."""


class PassageKVFile(StoredPassageKV):
    """A passage KV file, open for reading.

    It holds a descriptor of its own: a file that is evicted, demoted or deleted meanwhile still reads
    whole until `close`.
    """

    path: Path

    def __init__(
        self,
        raw: io.FileIO,
        header: PassageKVHeader,
        *,
        tier: str,
        path: Path,
        put_aside: PutAside,
        direct: bool = False,
        executor: Executor | None = None,
        num_threads: int = 1,
    ) -> None:
        """Own `raw`, whose header is `header`.

        `direct`: it was opened with O_DIRECT. With an `executor`, `num_threads` of its threads share a large read.
        """
        self.header = header
        self.tier = tier
        self.path = path
        self._put_aside = put_aside
        self._raw = raw
        self._direct = direct
        self._payload_start = os.fstat(raw.fileno()).st_size - header.payload_bytes
        self._executor = executor
        self._num_threads = num_threads

    @property
    def num_bytes(self) -> int:
        return self._payload_start + self.header.payload_bytes

    def fileno(self) -> int:
        return self._raw.fileno()

    def in_file(self) -> tuple[int, int] | None:
        return (self.fileno(), self._payload_start) if not self.header.passage_codec.packs else None

    def read_extent(self, layer: int, extent: memoryview) -> None:
        _read_exactly(self._raw.fileno(), extent, self._payload_start + self.header.extent_start(layer))
        self._check(layer, xxhash.xxh3_64(extent))

    @property
    def waits_for_disk(self) -> bool:
        """Whether its tier has threads for reads, since they wait."""
        return self._executor is not None

    def begin_extents(self, start: int, end: int) -> Future[torch.Tensor]:
        """Begin to read the extents of layers [start, end), unchecked, side by side: uint8 on CPU.

        Of a file that `waits_for_disk`; it stays open until the read has ended, which raises as `read_extent`.
        """
        assert self._executor is not None
        offset = self.header.extent_start(start)
        num_bytes = self.header.extent_start(end) - offset
        return self._executor.submit(self._extents, self._payload_start + offset, num_bytes)

    def read_file(self, memory: memoryview) -> None:
        """Read the whole file, header and all, unchecked, into `num_bytes` of memory at a multiple of 4 KiB.

        Raises CorruptPassageKVError where it cannot be read.
        """
        _read_exactly(self._raw.fileno(), memory, 0)

    def quarantine(self) -> bool:
        return self._put_aside(self.path, self.fileno(), "a layer's checksum is wrong")

    def close(self) -> None:
        """Give the descriptor back. Idempotent."""
        self._raw.close()

    def _extents(self, offset: int, num_bytes: int) -> torch.Tensor:
        memory = empty_extents(1, num_bytes)[0]
        _read_exactly(self._raw.fileno(), byte_view(memory), offset)
        return memory

    def _read_layers(self, read: Callable[[int], None]) -> None:
        num_layers = self.header.num_layers
        num_parts = min(self._num_threads, num_layers)
        if self._executor is None or num_parts < 2 or self.header.payload_bytes < PARALLEL_BYTES:
            super()._read_layers(read)
            return

        def read_part(start: int, end: int) -> None:
            for layer in range(start, end):
                read(layer)

        bounds = [num_layers * part // num_parts for part in range(num_parts + 1)]
        futures = [self._executor.submit(read_part, start, end) for start, end in pairwise(bounds)]
        errors = [future.exception() for future in futures]  # waits for all: nobody writes to `out` after an error
        for error in errors:
            if error is not None:
                raise error

    def _read_into(self, layer: int, out: torch.Tensor) -> None:
        """Read a layer; a raw one, where memory of any address will do, straight to where it is wanted."""
        if self._direct or not self.header.is_raw:
            super()._read_into(layer, out)
            return
        target = byte_view(out)
        padding = memoryview(bytearray(self.header.extent_bytes(layer) - len(target)))
        offset = self._payload_start + self.header.extent_start(layer)
        _read_exactly(self._raw.fileno(), target, offset)
        _read_exactly(self._raw.fileno(), padding, offset + len(target))
        checksum = xxhash.xxh3_64(target)
        checksum.update(padding)
        self._check(layer, checksum)


def read_header(fd: int, *, max_bytes: int) -> PassageKVHeader:
    """Read and check the header of an open file of at most `max_bytes`.

    Raises CorruptPassageKVError where it fails a check, is not a regular file or is larger.
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise CorruptPassageKVError("is not a regular file")
    if not EXTENT_ALIGNMENT <= status.st_size <= max_bytes:
        raise CorruptPassageKVError(f"has {status.st_size} bytes, not {EXTENT_ALIGNMENT} to {max_bytes}")
    start = byte_view(empty_extents(1, EXTENT_ALIGNMENT))
    _read_exactly(fd, start, 0)
    num_bytes = PassageKVHeader.packed_bytes(bytes(start))
    if num_bytes > EXTENT_ALIGNMENT:
        start = byte_view(empty_extents(1, min(num_bytes, status.st_size)))
        _read_exactly(fd, start, 0)
    return PassageKVHeader.unpack(bytes(start), file_bytes=status.st_size)


def _read_exactly(fd: int, buffer: memoryview, offset: int) -> None:
    done = 0
    while done < len(buffer):
        try:
            count = os.preadv(fd, [buffer[done:]], offset + done)
        except OSError as error:
            raise CorruptPassageKVError(f"cannot be read at byte {offset + done}: {error}") from error
        if count == 0:
            raise CorruptPassageKVError(f"ends at byte {offset + done}, before byte {offset + len(buffer)}")
        done += count
