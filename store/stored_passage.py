"""A passage KV that is read from where it is stored."""

from abc import abstractmethod
from collections.abc import Callable, Iterator

import torch
import xxhash

from kvblend.core.errors import CorruptPassageKVError
from kvblend.store.buffers import byte_view, check_out, empty_extents, split_extents
from kvblend.store.open_passage import OpenPassageKV

__all__ = ["StoredPassageKV"]


class StoredPassageKV(OpenPassageKV):
    """An open passage KV whose layers can be read, each checked each time. Safe from several threads at once."""

    @abstractmethod
    def read_extent(self, layer: int, extent: memoryview) -> None:
        """Read one layer's extent, padding and all, into `header.extent_bytes(layer)` of memory, and check it.

        The memory starts at a multiple of 4 KiB. Raises CorruptPassageKVError where the layer fails its check or
        cannot be read; what the memory then holds is undefined.
        """

    def in_file(self) -> tuple[int, int] | None:
        """A file descriptor and the byte of layer 0's extent, where staged layers lie one after another; else None.

        Whoever reads there checks what it reads. Valid until `close`.
        """
        return None

    def read(self, out: torch.Tensor | None = None) -> torch.Tensor:
        """Read, check and decode every layer.

        Returns [num_layers, 2, num_tokens, num_kv_heads, head_dim] in the header's dtype, on CPU. Without `out` it is
        freshly allocated: each layer is contiguous, but raw layers lie apart by their extents' padding, so `view`
        across layers may fail where `reshape` does not. `out` is a CPU tensor of that shape and dtype whose layers are
        contiguous.

        Raises CorruptPassageKVError where a layer fails its check or cannot be read (what `out` then
        holds is undefined), InvalidRequestError where `out` does not fit.
        """
        header = self.header
        if out is not None:
            check_out(out, shape=header.shape, dtype=header.torch_dtype)
        elif header.is_raw:
            extents = empty_extents(header.num_layers, header.staged_extent_bytes)
            self._read_layers(lambda layer: self.read_extent(layer, byte_view(extents[layer])))
            return split_extents(extents, header)
        else:
            out = torch.empty(header.shape, dtype=header.torch_dtype)
        self._read_layers(lambda layer: self._read_into(layer, out[layer]))
        return out

    def read_layer(self, layer: int, out: torch.Tensor | None = None) -> torch.Tensor:
        """Read, check and decode one layer: [2, num_tokens, num_kv_heads, head_dim]. As `read` otherwise."""
        header = self.header
        if not 0 <= layer < header.num_layers:
            raise IndexError(f"layer {layer} of {header.num_layers}")
        if out is not None:
            check_out(out, shape=header.layer_shape, dtype=header.torch_dtype)
        elif header.is_raw:
            extent = empty_extents(1, header.staged_extent_bytes)
            self.read_extent(layer, byte_view(extent[0]))
            return split_extents(extent, header)[0]
        else:
            out = torch.empty(header.layer_shape, dtype=header.torch_dtype)
        self._read_into(layer, out)
        return out

    def read_staged(self, layer: int, memory: torch.Tensor) -> None:
        """Read and check one layer as the kernels take it, into uint8 [header.staged_extent_bytes] on CPU.

        The memory starts at a multiple of 4 KiB; what lies behind `header.staged_bytes` is undefined. Raises as `read`.
        """
        if self.header.passage_codec.packs:
            self._unpack(layer, self._stored(layer), memory)
        else:
            self.read_extent(layer, byte_view(memory))

    def unpack_extent(self, layer: int, extent: torch.Tensor, memory: torch.Tensor) -> None:
        """As `read_staged`, of an extent that was read and not checked yet."""
        self._check(layer, xxhash.xxh3_64(byte_view(extent)))
        self._unpack(layer, extent[: self.header.layers[layer].stored_bytes], memory)

    def extents(self) -> Iterator[torch.Tensor]:
        """Yield every layer's extent, checked: uint8 on CPU. Each is valid until the next is asked for."""
        sizes = [self.header.extent_bytes(layer) for layer in range(self.header.num_layers)]
        memory = empty_extents(1, max(sizes))[0]
        for layer, size in enumerate(sizes):
            self.read_extent(layer, byte_view(memory[:size]))
            yield memory[:size]

    def _read_layers(self, read: Callable[[int], None]) -> None:
        for layer in range(self.header.num_layers):
            read(layer)

    def _read_into(self, layer: int, out: torch.Tensor) -> None:
        """Decode a layer into its numbers, while its extent is still in the core's cache."""
        try:
            self.header.passage_codec.decode(self._stored(layer), out)
        except ValueError as error:
            name = self.header.key.file_name
            raise CorruptPassageKVError(f"layer {layer} of {name} cannot be decoded: {error}") from error

    def _unpack(self, layer: int, stored: torch.Tensor, memory: torch.Tensor) -> None:
        header = self.header
        try:
            header.passage_codec.unpack(stored, memory[: header.staged_bytes], header.layer_shape)
        except ValueError as error:
            raise CorruptPassageKVError(
                f"layer {layer} of {header.key.file_name} cannot be unpacked: {error}"
            ) from error

    def _stored(self, layer: int) -> torch.Tensor:
        extent = empty_extents(1, self.header.extent_bytes(layer))[0]
        self.read_extent(layer, byte_view(extent))
        return extent[: self.header.layers[layer].stored_bytes]

    def _check(self, layer: int, checksum: xxhash.xxh3_64) -> None:
        if checksum.hexdigest() != self.header.layers[layer].checksum:
            raise CorruptPassageKVError(f"layer {layer} of {self.header.key.file_name} fails its checksum")
