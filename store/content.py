"""What a passage KV file is written from: a tensor, or a file of another tier."""

import os
from abc import ABC, abstractmethod

import torch
import xxhash

from kvblend.core.errors import InvalidRequestError
from kvblend.store.buffers import byte_view
from kvblend.store.format import DTYPES, PassageKVHeader
from kvblend.store.key import PassageKVKey
from kvblend.store.passage_file import PassageKVFile

__all__ = ["CopiedContent", "PassageKVContent", "TensorContent"]

NO_CHECKSUM = "0" * 16


class PassageKVContent(ABC):
    """The bytes of one passage KV file, known in size before they are written."""

    key: PassageKVKey
    num_bytes: int

    @abstractmethod
    def write(self, fd: int) -> None:
        """Write the whole file, once, to a file of `num_bytes` zeros.

        Raises CorruptPassageKVError where the bytes' source fails its checks; OSError as the system does.
        """


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
        self._header_bytes = len(self._header.pack())
        self.num_bytes = self._header_bytes + self._header.payload_bytes

    def write(self, fd: int) -> None:
        padding = bytes(self._header.extent_bytes - self._header.layer_bytes)
        checksums = []
        for index in range(self._header.num_layers):
            layer = byte_view(self._kv[index].detach().cpu().contiguous())
            checksum = xxhash.xxh3_64(layer)
            checksum.update(padding)
            checksums.append(checksum.hexdigest())
            write_exactly(fd, layer, self._header_bytes + index * self._header.extent_bytes)
        write_exactly(fd, self._header.model_copy(update={"layer_checksums": tuple(checksums)}).pack(), 0)


class CopiedContent(PassageKVContent):
    """An open file of another tier. It is checked on the way: a bad file is never copied whole."""

    def __init__(self, file: PassageKVFile) -> None:
        self.key = file.header.key
        self._file = file
        self._header = file.header.pack()
        self.num_bytes = len(self._header) + file.header.payload_bytes

    def write(self, fd: int) -> None:
        offset = len(self._header)
        for extent in self._file.extents():
            write_exactly(fd, extent, offset)
            offset += len(extent)
        write_exactly(fd, self._header, 0)


def write_exactly(fd: int, data: memoryview | bytes, offset: int) -> None:
    """Write all of `data` at `offset`, or raise OSError."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)
