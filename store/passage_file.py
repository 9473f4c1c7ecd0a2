"""An open passage KV file."""

import io
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
import xxhash

from kvblend.core.errors import CorruptPassageKVError
from kvblend.store.buffers import byte_view, check_out, empty_extents, split_extents
from kvblend.store.format import EXTENT_ALIGNMENT, PassageKVHeader

__all__ = ["PassageKVFile", "read_header"]

PARALLEL_BYTES = 4 << 20
"""A smaller file is read by the calling thread alone."""


class PassageKVFile:
    """A passage KV file, open for reading.

    It holds a descriptor of its own: a file that is evicted, demoted or deleted meanwhile still reads
    whole until `close`. Use it as a context manager. Reads are safe from several threads at once.

    `header` passed its checks when the file was opened; a layer is checked each time it is read.
    `tier` is the name of the tier that it was opened from.
    """

    header: PassageKVHeader
    tier: str
    path: Path

    def __init__(
        self,
        raw: io.FileIO,
        header: PassageKVHeader,
        *,
        tier: str,
        path: Path,
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
        self._raw = raw
        self._direct = direct
        self._payload_start = os.fstat(raw.fileno()).st_size - header.payload_bytes
        self._executor = executor
        self._num_threads = num_threads

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole file."""
        return self._payload_start + self.header.payload_bytes

    def fileno(self) -> int:
        return self._raw.fileno()

    def read(self, out: torch.Tensor | None = None) -> torch.Tensor:
        """Read and check every layer.

        Returns [num_layers, 2, num_tokens, num_kv_heads, head_dim] in the header's dtype. Without `out` it
        is freshly allocated and read into without a copy: each layer is contiguous, but layers lie
        `header.extent_bytes` apart, so `view` across layers may fail where `reshape` does not.
        `out` is a CPU tensor of that shape and dtype whose layers are contiguous.

        Raises CorruptPassageKVError where a layer fails its check or cannot be read (what `out` then
        holds is undefined), InvalidRequestError where `out` does not fit.
        """
        header = self.header
        if out is None:
            extents = empty_extents(header.num_layers, header.extent_bytes)
            self._read_layers(lambda layer: self._read_extent(layer, byte_view(extents[layer])))
            return split_extents(extents, header)
        check_out(out, shape=header.shape, dtype=header.torch_dtype)
        self._read_layers(lambda layer: self._read_into(layer, out[layer]))
        return out

    def read_layer(self, layer: int, out: torch.Tensor | None = None) -> torch.Tensor:
        """Read and check one layer: [2, num_tokens, num_kv_heads, head_dim]. As `read` otherwise."""
        header = self.header
        if not 0 <= layer < header.num_layers:
            raise IndexError(f"layer {layer} of {header.num_layers}")
        if out is None:
            extent = empty_extents(1, header.extent_bytes)
            self._read_extent(layer, byte_view(extent))
            return split_extents(extent, header)[0]
        check_out(out, shape=header.shape[1:], dtype=header.torch_dtype)
        self._read_into(layer, out)
        return out

    def extents(self) -> Iterator[memoryview]:
        """Yield every layer's extent, checked. Each is valid until the next is asked for."""
        buffer = byte_view(empty_extents(1, self.header.extent_bytes))
        for layer in range(self.header.num_layers):
            self._read_extent(layer, buffer)
            yield buffer

    def close(self) -> None:
        """Give the descriptor back. Idempotent."""
        self._raw.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_layers(self, read: Callable[[int], None]) -> None:
        num_layers = self.header.num_layers
        num_parts = min(self._num_threads, num_layers)
        if self._executor is None or num_parts < 2 or self.header.payload_bytes < PARALLEL_BYTES:
            for layer in range(num_layers):
                read(layer)
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
        """Read a layer into memory of any address."""
        target = byte_view(out)
        if self._direct:  # by way of an aligned extent, copied while it is still in the core's cache
            extent = byte_view(empty_extents(1, self.header.extent_bytes))
            self._read_extent(layer, extent)
            target[:] = extent[: self.header.layer_bytes]
            return
        padding = memoryview(bytearray(self.header.extent_bytes - self.header.layer_bytes))
        offset = self._payload_start + layer * self.header.extent_bytes
        _read_exactly(self._raw.fileno(), target, offset)
        _read_exactly(self._raw.fileno(), padding, offset + len(target))
        checksum = xxhash.xxh3_64(target)
        checksum.update(padding)
        self._check(layer, checksum.hexdigest())

    def _read_extent(self, layer: int, extent: memoryview) -> None:
        offset = self._payload_start + layer * self.header.extent_bytes
        _read_exactly(self._raw.fileno(), extent, offset)
        self._check(layer, xxhash.xxh3_64_hexdigest(extent))

    def _check(self, layer: int, checksum: str) -> None:
        if checksum != self.header.layer_checksums[layer]:
            raise CorruptPassageKVError(f"layer {layer} of {self.path.name} fails its checksum")


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
