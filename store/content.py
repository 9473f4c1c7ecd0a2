"""What a passage KV is put from: a tensor, or an open passage KV of another tier."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
import xxhash

from kvblend.core.errors import InvalidRequestError
from kvblend.store.buffers import byte_view
from kvblend.store.format import DTYPES, PassageKVHeader
from kvblend.store.key import PassageKVKey
from kvblend.store.open_passage import OpenPassageKV

__all__ = ["CopiedContent", "PassageKVContent", "TensorContent"]

NO_CHECKSUM = "0" * 16


class PassageKVContent(ABC):
    """One passage KV, known in size before its bytes are. `num_bytes` is that of a file of it."""

    key: PassageKVKey
    num_bytes: int

    @abstractmethod
    def header(self) -> PassageKVHeader:
        """Its header; the checksums are right once `layers` was read to its end."""

    @abstractmethod
    def layers(self) -> Iterator[torch.Tensor]:
        """Yield every layer's bytes: uint8, on any device, an extent's or without its padding of zeros.

        Each is valid until the next is asked for. Raises CorruptPassageKVError where their source fails its checks.
        """

    def write(self, fd: int) -> None:
        """Write the whole file, once, to a file of `num_bytes` zeros.

        Raises CorruptPassageKVError where the bytes' source fails its checks; OSError as the system does.
        """
        offset = self.num_bytes - self.header().payload_bytes
        for layer in self.layers():
            write_exactly(fd, byte_view(layer.cpu()), offset)
            offset += self.header().extent_bytes
        write_exactly(fd, self.header().pack(), 0)

    def copy_to(self, extents: torch.Tensor) -> None:
        """Fill uint8 [num_layers, extent_bytes] on any device, once, on its current stream. Raises as `layers`."""
        for index, layer in enumerate(self.layers()):
            extents[index, : len(layer)].copy_(layer)
            extents[index, len(layer) :].zero_()


class TensorContent(PassageKVContent):
    """A passage's KV in memory.

    kv: [num_layers, 2, num_tokens, num_kv_heads, head_dim], bfloat16, float16 or float32, any strides, any
    device. Raises InvalidRequestError where `kv` is none of that or `capture_position` is negative.
    """

    def __init__(self, key: PassageKVKey, kv: torch.Tensor, *, capture_position: int) -> None:
        dtype = next((name for name, dtype in DTYPES.items() if dtype == kv.dtype), None)
        if dtype is None:
            raise InvalidRequestError(f"kv is {kv.dtype}, not one of {', '.join(DTYPES)}", param="kv")
        num_heads = key.head_end - key.head_start
        if kv.dim() != 5 or kv.shape[1] != 2 or kv.shape[3] != num_heads or kv.numel() == 0:
            raise InvalidRequestError(
                f"kv is {list(kv.shape)}, not [num_layers, 2, num_tokens, {num_heads}, head_dim], all at least 1",
                param="kv",
            )
        if capture_position < 0:
            raise InvalidRequestError(f"capture position {capture_position} is negative", param="capture_position")
        num_layers, _, num_tokens, _, head_dim = kv.shape
        self.key = key
        self._kv = kv
        self._header = PassageKVHeader(
            model_fingerprint=key.model_fingerprint,
            encode_context=key.encode_context,
            passage_id=key.passage_id,
            head_start=key.head_start,
            head_end=key.head_end,
            dtype=dtype,
            shape=(num_layers, 2, num_tokens, num_heads, head_dim),
            capture_position=capture_position,
            layer_checksums=(NO_CHECKSUM,) * kv.shape[0],
        )
        self.num_bytes = len(self._header.pack()) + self._header.payload_bytes

    def header(self) -> PassageKVHeader:
        return self._header

    def layers(self) -> Iterator[torch.Tensor]:
        padding = bytes(self._header.extent_bytes - self._header.layer_bytes)
        checksums = []
        for kv in self._kv:
            layer = kv.detach().cpu().contiguous().view(-1).view(torch.uint8)
            checksum = xxhash.xxh3_64(byte_view(layer))
            checksum.update(padding)
            checksums.append(checksum.hexdigest())
            yield layer
        self._header = self._header.model_copy(update={"layer_checksums": tuple(checksums)})


class CopiedContent(PassageKVContent):
    """An open passage KV of another tier. It is checked on the way: a bad one is never copied whole."""

    def __init__(self, file: OpenPassageKV) -> None:
        self.key = file.header.key
        self.num_bytes = len(file.header.pack()) + file.header.payload_bytes
        self._file = file

    def header(self) -> PassageKVHeader:
        return self._file.header

    def layers(self) -> Iterator[torch.Tensor]:
        return self._file.extents()


def write_exactly(fd: int, data: memoryview | bytes, offset: int) -> None:
    """Write all of `data` at `offset`, or raise OSError."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)
