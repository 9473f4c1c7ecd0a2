"""A passage KV that was fetched whole."""

from collections.abc import Callable
from typing import Any

import torch
import xxhash

from kvblend.core.errors import CorruptPassageKVError
from kvblend.store.buffers import byte_view, check_out, empty_extents, split_extents
from kvblend.store.format import EXTENT_ALIGNMENT, PassageKVHeader
from kvblend.store.key import PassageKVKey
from kvblend.store.stored_passage import StoredPassageKV

__all__ = ["RemotePassage"]


class RemotePassage(StoredPassageKV):
    """The bytes of a passage KV file in this process's memory, as long as anyone refers to it; `close` does nothing.

    data: uint8 [num_bytes] on a CPU, at a multiple of 4 KiB, which is this one's from now on; or anything that has a
    buffer, which is copied where it must be. Raises CorruptPassageKVError where it is no file of `key`. Layers are
    checked when they are read.
    """

    def __init__(
        self, key: PassageKVKey, data: Any, *, tier: str, put_aside: Callable[["RemotePassage"], bool]
    ) -> None:
        whole = byte_view(data) if isinstance(data, torch.Tensor) else memoryview(data).cast("B")
        head = bytes(whole[:EXTENT_ALIGNMENT])
        num_head = PassageKVHeader.packed_bytes(head)
        self.header = PassageKVHeader.unpack(bytes(whole[:num_head]), file_bytes=len(whole))
        if self.header.key != key:
            raise CorruptPassageKVError(f"holds the KV of {self.header.key.file_name}")
        self.tier, self._num_head, self._put_aside = tier, num_head, put_aside
        self._memory = data if isinstance(data, torch.Tensor) else _extents(whole)
        self._bytes = byte_view(self._memory)

    @property
    def num_bytes(self) -> int:
        return len(self._memory)

    @property
    def memory(self) -> torch.Tensor:
        """The file: uint8 [num_bytes]."""
        return self._memory

    def read(self, out: torch.Tensor | None = None) -> torch.Tensor:
        if not self.header.is_raw or out is None:
            return super().read(out)
        check_out(out, shape=self.header.shape, dtype=self.header.torch_dtype)
        extents = self._memory[self._num_head :].view(self.header.num_layers, self.header.staged_extent_bytes)
        # All views are made at once, and a layer is copied while it is in the core's cache from its check.
        pairs = zip(out.unbind(), split_extents(extents, self.header).unbind(), strict=True)
        for layer, (target, source) in enumerate(pairs):
            self._checked(layer)
            target.copy_(source)
        return out

    def read_extent(self, layer: int, extent: memoryview) -> None:
        extent[:] = self._checked(layer)

    def _stored(self, layer: int) -> torch.Tensor:
        return torch.frombuffer(self._checked(layer), dtype=torch.uint8)[: self.header.layers[layer].stored_bytes]

    def _checked(self, layer: int) -> memoryview:
        """A layer's extent where it lies."""
        start = self._num_head + self.header.extent_start(layer)
        own = self._bytes[start : start + self.header.extent_bytes(layer)]
        self._check(layer, xxhash.xxh3_64(own))
        return own

    def quarantine(self) -> bool:
        return self._put_aside(self)

    def close(self) -> None:
        """Its memory goes with the last who refers to it: it may be on its way to another tier."""


def _extents(whole: memoryview) -> torch.Tensor:
    """A file's bytes with extents at multiples of 4 KiB, as they lie in it: uint8 [num_bytes]; copied if they must."""
    if not whole.readonly:
        own = torch.frombuffer(whole, dtype=torch.uint8)
        if own.data_ptr() % EXTENT_ALIGNMENT == 0:
            return own
    copied = empty_extents(1, len(whole))[0]
    byte_view(copied)[:] = whole
    return copied
