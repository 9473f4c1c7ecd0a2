"""A part of an index: slots of rows and their vectors, in one mapped file or in memory."""

import mmap
import os
import struct
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

__all__ = ["ERASED", "Part"]

MAGIC = b"KVBPART1"
SHAPE = struct.Struct("<8sQQ")  # magic, slots, floats a vector
COMMIT = struct.Struct("<16sQQ")  # the collection's version, slots in use, their checksum
COMMIT_OFFSET = 64
HEADER_BYTES = 4096
ERASED = -1


class Part:
    """`capacity` slots; slot n is `rows[n]`, `vectors[n]` (float32, unit length) and `digests[n]`, a checksum of both.

    Float32 as in the catalog: numpy's BLAS multiplies nothing smaller, so scores need neither conversion nor a second
    look, and what is mapped but not read takes no memory. Rows are at least 1; an erased slot has row -1 and a vector
    of zeros, one that never was filled (or whose filling a power cut took back) is all zeros. One thread writes at a
    time; slots below a count that readers were told of change only by `erase`.
    """

    def __init__(self, path: Path | None, buffer: memoryview, capacity: int, dim: int, *, writable: bool) -> None:
        self.path = path
        self.capacity, self.dim, self.writable = capacity, dim, writable
        self._buffer = buffer
        rows_end = HEADER_BYTES + 8 * capacity
        vectors_at = _vectors_at(capacity)
        self.rows: NDArray[np.int64] = np.frombuffer(buffer, "<i8", capacity, HEADER_BYTES)
        self.digests: NDArray[np.uint64] = np.frombuffer(buffer, "<u8", capacity, rows_end)
        floats: NDArray[np.float32] = np.frombuffer(buffer, "<f4", capacity * dim, vectors_at)
        self.vectors = floats.reshape(capacity, dim)

    @classmethod
    def create(cls, path: Path | None, *, capacity: int, dim: int) -> "Part":
        """An empty part; without a path, in memory.

        Raises:
            OSError: the disk has no room. All of it is taken now: a write to a mapping could not say so.
        """
        size = _vectors_at(capacity) + 4 * capacity * dim
        if path is None:
            return cls(None, memoryview(bytearray(size)), capacity, dim, writable=True)
        with path.open("w+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
            buffer = memoryview(mmap.mmap(file.fileno(), size))
        buffer[: SHAPE.size] = SHAPE.pack(MAGIC, capacity, dim)
        return cls(path, buffer, capacity, dim, writable=True)

    @classmethod
    def open(cls, path: Path, *, writable: bool) -> "Part":
        """Map a part's file.

        Raises:
            ValueError: it is not a whole part.
            OSError: it cannot be read.
        """
        with path.open("r+b" if writable else "rb") as file:
            header = file.read(SHAPE.size)
            if len(header) < SHAPE.size:
                raise ValueError(f"{path} is shorter than an index part's header")
            magic, capacity, dim = SHAPE.unpack(header)
            size = os.fstat(file.fileno()).st_size
            if magic != MAGIC or size != _vectors_at(capacity) + 4 * capacity * dim:
                raise ValueError(f"{path} is not a whole index part")
            access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
            return cls(
                path, memoryview(mmap.mmap(file.fileno(), size, access=access)), capacity, dim, writable=writable
            )

    def put(self, start: int, rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Fill slots from `start` on."""
        stop = start + len(rows)
        self.vectors[start:stop] = vectors
        self.rows[start:stop] = rows
        self.digests[start:stop] = _digests(rows, self.vectors[start:stop])

    def erase(self, slots: NDArray[np.int64]) -> None:
        """Overwrite slots with zeros, on the disk, too: a vector tells of its text."""
        if self.writable and len(slots):
            self.vectors[slots] = 0
            self.rows[slots] = ERASED
            self.digests[slots] = 0
            self.flush()

    def commit(self, version: bytes, count: int) -> None:
        """Note that the slots below `count` are of the collection's `version`."""
        record = version + count.to_bytes(8, "little")
        self._buffer[COMMIT_OFFSET : COMMIT_OFFSET + COMMIT.size] = record + xxhash.xxh3_64_digest(record)[::-1]

    def committed(self) -> tuple[bytes, int] | None:
        """The last version and count noted; None where there is no sound note."""
        version, count, digest = COMMIT.unpack_from(self._buffer, COMMIT_OFFSET)
        sound = digest == xxhash.xxh3_64_intdigest(version + count.to_bytes(8, "little"))
        return (version, count) if sound and count <= self.capacity else None

    def sound(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Which of the slots hold what was put there; not those that are empty or erased."""
        rows = self.rows[start:stop]
        sound: NDArray[np.bool_] = (rows > 0) & (self.digests[start:stop] == _digests(rows, self.vectors[start:stop]))
        return sound

    def slots_of(self, rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """The slots below `count` of those of `rows` (sorted) that are in it."""
        if count < self.capacity:  # still growing, and small
            return np.flatnonzero(np.isin(self.rows[:count], rows))
        ordered, order = self._by_row
        places = np.searchsorted(ordered, rows)
        places[places == count] = 0
        slots: NDArray[np.int64] = order[places[ordered[places] == rows]].astype(np.int64)
        return slots

    def flush(self) -> None:
        """Sync to the disk."""
        if self.path is not None:
            mapped = self._buffer.obj
            assert isinstance(mapped, mmap.mmap)
            mapped.flush()

    @cached_property
    def _by_row(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """All rows sorted, and their slots. Of when it was full: a row erased since is found, and known to be dead."""
        rows = self.rows.copy()
        order = np.argsort(rows, kind="stable").astype(np.int32)
        return rows[order], order


def _vectors_at(capacity: int) -> int:
    """Where vectors begin, in bytes: at a multiple of 64."""
    return (HEADER_BYTES + 16 * capacity + 63) // 64 * 64


def _digests(rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> NDArray[np.uint64]:
    digest = xxhash.xxh3_64_intdigest
    pairs = zip(rows.tolist(), np.ascontiguousarray(vectors), strict=True)
    return np.fromiter((digest(vector, row & 0x7FFFFFFFFFFFFFFF) for row, vector in pairs), np.uint64, len(rows))
