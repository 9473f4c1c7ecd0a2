"""A passage KV that was fetched whole."""

from collections.abc import Callable
from typing import Any

import torch
import xxhash

from kvblend.core.errors import CorruptPassageKVError
from kvblend.store.buffers import byte_view, empty_extents
from kvblend.store.format import EXTENT_ALIGNMENT, PassageKVHeader
from kvblend.store.key import PassageKVKey
from kvblend.store.stored_passage import StoredPassageKV

__all__ = ["RemotePassage"]


class RemotePassage(StoredPassageKV):
    """The bytes of a passage KV file in this process's memory, as long as anyone refers to it; `close` does nothing.

    data: uint8 [num_bytes] on a CPU, at a multiple of 4 KiB, which is this one's from now on; or anything that has a
    buffer, which is copied. Raises CorruptPassageKVError where it is no file of `key`. Layers are checked when they are
    read.
    """

    def __init__(
        self, key: PassageKVKey, data: Any, *, tier: str, put_aside: Callable[["RemotePassage"], bool]
    ) -> None:
        memory = data if isinstance(data, torch.Tensor) else _copied(data)
        whole = byte_view(memory)
        head = bytes(whole[:EXTENT_ALIGNMENT])
        num_head = PassageKVHeader.packed_bytes(head)
        self.header = PassageKVHeader.unpack(bytes(whole[:num_head]), file_bytes=len(whole))
        if self.header.key != key:
            raise CorruptPassageKVError(f"holds the KV of {self.header.key.file_name}")
        self.tier, self._num_head, self._put_aside = tier, num_head, put_aside
        self._memory = memory

    @property
    def num_bytes(self) -> int:
        return len(self._memory)

    @property
    def memory(self) -> torch.Tensor:
        """The file: uint8 [num_bytes]."""
        return self._memory

    def read_extent(self, layer: int, extent: memoryview) -> None:
        start = self._num_head + self.header.extent_start(layer)
        own = byte_view(self._memory[start : start + self.header.extent_bytes(layer)])
        self._check(layer, xxhash.xxh3_64(own))
        extent[:] = own

    def quarantine(self) -> bool:
        return self._put_aside(self)

    def close(self) -> None:
        """Its memory goes with the last who refers to it: it may be on its way to another tier."""


def _copied(data: Any) -> torch.Tensor:
    whole = memoryview(data).cast("B")
    memory = empty_extents(1, len(whole))[0]  # extents begin at multiples of 4 KiB, as they do in the file
    byte_view(memory)[:] = whole
    return memory
