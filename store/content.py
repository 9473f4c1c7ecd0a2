"""What a passage KV is put from: a tensor, or an open passage KV of another tier."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
import xxhash

from kvblend.core.errors import InvalidRequestError
from kvblend.store.buffers import byte_view, empty_extents
from kvblend.store.codecs import CodecSpec, codec_of
from kvblend.store.format import DTYPES, LayerEntry, PassageKVHeader, aligned
from kvblend.store.key import PassageKVKey
from kvblend.store.stored_passage import StoredPassageKV

__all__ = ["CopiedContent", "PassageKVContent", "TensorContent", "layer_entry"]


class PassageKVContent(ABC):
    """One passage KV that can be written any number of times."""

    header: PassageKVHeader

    @property
    def key(self) -> PassageKVKey:
        return self.header.key

    @property
    def num_bytes(self) -> int:
        """Of a file of it."""
        return len(self.header.pack()) + self.header.payload_bytes

    @abstractmethod
    def layers(self) -> Iterator[torch.Tensor]:
        """Yield every layer's stored bytes: uint8 on CPU, an extent's or without its padding of zeros.

        Each is valid until the next is asked for. Raises CorruptPassageKVError where their source fails its checks.
        """

    def write(self, fd: int) -> None:
        """Write the whole file to one of `num_bytes` zeros.

        Raises CorruptPassageKVError where the bytes' source fails its checks; OSError as the system does.
        """
        head = self.header.pack()
        for layer, stored in enumerate(self.layers()):
            write_exactly(fd, byte_view(stored), len(head) + self.header.extent_start(layer))
        write_exactly(fd, head, 0)

    def to_bytes(self) -> memoryview:
        """The whole file, in memory of its own. Raises as `layers`."""
        head = self.header.pack()
        whole = byte_view(empty_extents(1, len(head) + self.header.payload_bytes)[0])
        whole[: len(head)] = head
        for layer, stored in enumerate(self.layers()):
            start = len(head) + self.header.extent_start(layer)
            end, stop = start + len(stored), start + self.header.extent_bytes(layer)
            whole[start:end] = byte_view(stored)
            whole[end:stop] = bytes(stop - end)
        return whole


class TensorContent(PassageKVContent):
    """A passage's KV in memory, encoded by `codec`.

    kv: [num_layers, 2, num_tokens, num_kv_heads, head_dim], bfloat16, float16 or float32, any strides, any
    device. Raises InvalidRequestError where `kv` is none of that, the codec cannot store it or `capture_position` is
    negative.
    """

    def __init__(
        self,
        key: PassageKVKey,
        kv: torch.Tensor,
        *,
        capture_position: int,
        owners: Sequence[str] = (),
        codec: CodecSpec | None = None,
    ) -> None:
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
        spec = codec or CodecSpec()
        try:
            passage_codec = codec_of(spec)
            passage_codec.check((2, num_tokens, num_heads, head_dim))
            self._stored = [passage_codec.encode(layer) for layer in kv.detach().cpu()]
        except ValueError as error:
            raise InvalidRequestError(
                f"codec {spec.name} cannot store {list(kv.shape)}: {error}", param="codec"
            ) from error
        self.header = PassageKVHeader(
            model_fingerprint=key.model_fingerprint,
            encode_context=key.encode_context,
            passage_id=key.passage_id,
            head_start=key.head_start,
            head_end=key.head_end,
            dtype=dtype,
            shape=(num_layers, 2, num_tokens, num_heads, head_dim),
            capture_position=capture_position,
            owners=tuple(owners),
            codec=spec,
            layers=tuple(layer_entry(stored) for stored in self._stored),
        )
        self.header.pack()  # raises where there are too many layers

    def layers(self) -> Iterator[torch.Tensor]:
        return iter(self._stored)


class CopiedContent(PassageKVContent):
    """An open passage KV of another tier. It is checked on the way: a bad one is never copied whole."""

    def __init__(self, file: StoredPassageKV) -> None:
        self.header = file.header
        self._file = file

    def layers(self) -> Iterator[torch.Tensor]:
        return self._file.extents()


def layer_entry(stored: torch.Tensor) -> LayerEntry:
    """What a header says of a layer stored as uint8 [stored_bytes]."""
    checksum = xxhash.xxh3_64(byte_view(stored))
    checksum.update(bytes(aligned(len(stored)) - len(stored)))
    return LayerEntry(stored_bytes=len(stored), checksum=checksum.hexdigest())


def write_exactly(fd: int, data: memoryview | bytes, offset: int) -> None:
    """Write all of `data` at `offset`, or raise OSError."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)
