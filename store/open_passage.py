"""A passage KV that a tier has opened."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

import torch
import xxhash

from kvblend.core.errors import CorruptPassageKVError
from kvblend.store.buffers import byte_view, check_out, empty_extents, split_extents
from kvblend.store.format import PassageKVHeader
from kvblend.triton_kernels import StagedPassage

__all__ = ["OpenPassageKV"]


class OpenPassageKV(ABC):
    """One passage KV, held open for reading: it stays whole until `close`, whatever its tier does meanwhile.

    Use it as a context manager. Reads are safe from several threads at once. `header` was checked before
    this was opened; a layer is checked each time it is read. `tier` is the name of the tier that it was opened from.
    """

    header: PassageKVHeader
    tier: str

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Bytes that it takes in its tier."""

    @abstractmethod
    def read_extent(self, layer: int, extent: memoryview) -> None:
        """Read one layer's extent, padding and all, into `header.extent_bytes` of memory, and check it.

        The memory starts at a multiple of 4 KiB. Raises CorruptPassageKVError where the layer fails its check or
        cannot be read; what the memory then holds is undefined.
        """

    @abstractmethod
    def close(self) -> None:
        """Let it go. Idempotent."""

    def in_file(self) -> tuple[int, int] | None:
        """A file descriptor and the byte of layer 0's extent, where all extents lie one after another; else None.

        Whoever reads there checks what it reads. Valid until `close`.
        """
        return None

    def staged(self) -> StagedPassage | None:
        """What the kernels take, where it lies in device memory already; None where it must be read.

        It may be used until `close`, on the stream that is current in this thread, and is not checked again.
        """
        return None

    def read(self, out: torch.Tensor | None = None) -> torch.Tensor:
        """Read and check every layer.

        Returns [num_layers, 2, num_tokens, num_kv_heads, head_dim] in the header's dtype, on CPU. Without `out` it
        is freshly allocated and read into without a copy: each layer is contiguous, but layers lie
        `header.extent_bytes` apart, so `view` across layers may fail where `reshape` does not.
        `out` is a CPU tensor of that shape and dtype whose layers are contiguous.

        Raises CorruptPassageKVError where a layer fails its check or cannot be read (what `out` then
        holds is undefined), InvalidRequestError where `out` does not fit.
        """
        header = self.header
        if out is None:
            extents = empty_extents(header.num_layers, header.extent_bytes)
            self._read_layers(lambda layer: self.read_extent(layer, byte_view(extents[layer])))
            return split_extents(extents, header)
        check_out(out, shape=header.shape, dtype=header.torch_dtype)
        self._read_layers(lambda layer: self._read_into(layer, byte_view(out[layer])))
        return out

    def read_layer(self, layer: int, out: torch.Tensor | None = None) -> torch.Tensor:
        """Read and check one layer: [2, num_tokens, num_kv_heads, head_dim]. As `read` otherwise."""
        header = self.header
        if not 0 <= layer < header.num_layers:
            raise IndexError(f"layer {layer} of {header.num_layers}")
        if out is None:
            extent = empty_extents(1, header.extent_bytes)
            self.read_extent(layer, byte_view(extent))
            return split_extents(extent, header)[0]
        check_out(out, shape=header.shape[1:], dtype=header.torch_dtype)
        self._read_into(layer, byte_view(out))
        return out

    def extents(self) -> Iterator[torch.Tensor]:
        """Yield every layer's extent, checked: uint8 on CPU. Each is valid until the next is asked for."""
        extent = empty_extents(1, self.header.extent_bytes)[0]
        for layer in range(self.header.num_layers):
            self.read_extent(layer, byte_view(extent))
            yield extent

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_layers(self, read: Callable[[int], None]) -> None:
        for layer in range(self.header.num_layers):
            read(layer)

    def _read_into(self, layer: int, target: memoryview) -> None:
        """Read a layer without its padding, by way of an extent, copied while it is still in the core's cache."""
        extent = byte_view(empty_extents(1, self.header.extent_bytes))
        self.read_extent(layer, extent)
        target[:] = extent[: self.header.layer_bytes]

    def _check(self, layer: int, checksum: xxhash.xxh3_64) -> None:
        if checksum.hexdigest() != self.header.layer_checksums[layer]:
            raise CorruptPassageKVError(f"layer {layer} of {self.header.key.file_name} fails its checksum")
