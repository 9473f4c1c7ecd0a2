"""The passage KV file, format 2: one header extent, then one extent per layer.

    0                     8         12          16                    24
    +---------------------+---------+-----------+---------------------+-------------------+---------+
    | magic "KVBLEND\\0"   | version | JSON size | xxh3_64 of extent   | header as JSON    | zeros   |
    +---------------------+---------+-----------+---------------------+-------------------+---------+
    | layer 0: as the codec stores keys and values [k|v, token, kv_head, head_dim]        | zeros   |
    +-------------------------------------------------------------------------------------+---------+
    | layer 1 ...                                                                                   |

Integers are little-endian. The header's table gives each layer's stored bytes, without the zeros. Every extent starts
and ends at a multiple of 4 KiB, so that layers stream and O_DIRECT works. The header's checksum covers its whole
extent (its own field as zero) and a layer's checksum its whole extent, so no bit of the file is unchecked. Nothing here
is ever unpickled.
"""

import struct
from functools import cached_property
from itertools import accumulate
from typing import Annotated, Literal, Self

import torch
import xxhash
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from kvblend.core.errors import CorruptPassageKVError, InvalidRequestError
from kvblend.store.codecs import CodecSpec, PassageCodec, codec_of
from kvblend.store.key import FORMAT_VERSION, PassageKVKey

__all__ = ["DTYPES", "EXTENT_ALIGNMENT", "MAX_HEADER_BYTES", "LayerEntry", "PassageKVHeader", "aligned"]

EXTENT_ALIGNMENT = 4096
MAX_HEADER_BYTES = 1 << 16
MAGIC = b"KVBLEND\0"
PREFIX = struct.Struct("<8sIIQ")  # magic, version, JSON size, checksum

DtypeName = Literal["bfloat16", "float16", "float32"]
DTYPES: dict[DtypeName, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

Size = Annotated[int, Field(ge=1, lt=1 << 40)]
Checksum = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Owner = Annotated[str, StringConstraints(min_length=1, max_length=128)]
MAX_OWNERS = 16
MOST_PACKED = 256
"""A layer's numbers take no more than so many times its stored bytes: what a reader allocates is bounded."""


def aligned(num_bytes: int) -> int:
    """Round up to a whole number of extents' alignment."""
    return -(-num_bytes // EXTENT_ALIGNMENT) * EXTENT_ALIGNMENT


class LayerEntry(BaseModel):
    """One layer's extent: the bytes stored in it, without its padding, and the xxh3_64 of all of it, in hex."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    stored_bytes: Size
    checksum: Checksum


class PassageKVHeader(BaseModel):
    """What a passage KV file says of itself.

    `shape` is [layer, k|v, token, kv_head, head_dim] and `dtype` what a layer's numbers are once decoded; the heads are
    the KV heads [head_start, head_end) of the model. `capture_position` is the first token's position when the KV was
    computed, which is what its keys' rotation stands for. `owners`: whoever it was stored for, when it was.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    model_fingerprint: str
    encode_context: str
    passage_id: str
    head_start: int
    head_end: int
    dtype: DtypeName
    shape: Annotated[tuple[Size, Literal[2], Size, Size, Size], Field(strict=False)]
    capture_position: Annotated[int, Field(ge=0, lt=1 << 40)]
    owners: Annotated[tuple[Owner, ...], Field(max_length=MAX_OWNERS, strict=False)] = ()
    codec: CodecSpec = CodecSpec()
    layers: Annotated[tuple[LayerEntry, ...], Field(strict=False)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.layers) != self.num_layers:
            raise ValueError(f"a table of {len(self.layers)} layers for {self.num_layers}")
        if self.head_end - self.head_start != self.num_kv_heads:
            raise ValueError(f"{self.num_kv_heads} heads for the range [{self.head_start}, {self.head_end})")
        self.passage_codec.check(self.layer_shape)
        for layer, entry in enumerate(self.layers):
            if not self.passage_codec.packs and entry.stored_bytes != self.staged_bytes:
                raise ValueError(f"{entry.stored_bytes} bytes of layer {layer}, not {self.staged_bytes}")
            if self.layer_bytes > MOST_PACKED * entry.stored_bytes + MAX_HEADER_BYTES:
                raise ValueError(f"{entry.stored_bytes} bytes of layer {layer} are to hold {self.layer_bytes}")
        return self

    @property
    def key(self) -> PassageKVKey:
        """Raises InvalidRequestError where the fields are no key's."""
        return PassageKVKey(
            self.model_fingerprint, self.encode_context, self.passage_id, self.head_start, self.head_end
        )

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def num_layers(self) -> int:
        return self.shape[0]

    @property
    def num_tokens(self) -> int:
        return self.shape[2]

    @property
    def num_kv_heads(self) -> int:
        return self.shape[3]

    @property
    def head_dim(self) -> int:
        return self.shape[4]

    @property
    def layer_shape(self) -> tuple[int, int, int, int]:
        """[k|v, token, kv_head, head_dim]"""
        return self.shape[1:]

    @property
    def layer_bytes(self) -> int:
        """Bytes of one layer's numbers, decoded."""
        return 2 * self.num_tokens * self.num_kv_heads * self.head_dim * self.torch_dtype.itemsize

    @property
    def passage_codec(self) -> PassageCodec:
        return codec_of(self.codec)

    @property
    def is_raw(self) -> bool:
        """Whether extents hold the numbers as they are: all are of one size then."""
        return self.codec.name == "raw"

    @property
    def staged_bytes(self) -> int:
        """Bytes of one layer as kernels take it: what the codec stores, but for its entropy coding."""
        return self.passage_codec.staged_bytes(self.layer_shape, self.torch_dtype)

    @property
    def staged_extent_bytes(self) -> int:
        """Bytes of a staged layer with its padding."""
        return aligned(self.staged_bytes)

    def extent_bytes(self, layer: int) -> int:
        """Bytes of one layer's extent."""
        return aligned(self.layers[layer].stored_bytes)

    def extent_start(self, layer: int) -> int:
        """Where a layer's extent begins, behind the header's; of `num_layers`, where the last one ends."""
        return self._starts[layer]

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        return tuple(accumulate((aligned(layer.stored_bytes) for layer in self.layers), initial=0))

    @property
    def payload_bytes(self) -> int:
        """Bytes of all layers' extents: the file without its header's extent."""
        return self._starts[-1]

    def pack(self) -> bytes:
        """The header's extent. Raises InvalidRequestError where it is larger than 64 KiB: too many layers."""
        text = self.model_dump_json().encode()
        num_bytes = aligned(PREFIX.size + len(text))
        if num_bytes > MAX_HEADER_BYTES:
            raise InvalidRequestError(
                f"a header of {num_bytes} bytes, for {self.num_layers} layers, is over {MAX_HEADER_BYTES}"
            )
        body = text + bytes(num_bytes - PREFIX.size - len(text))
        checksum = xxhash.xxh3_64_intdigest(PREFIX.pack(MAGIC, FORMAT_VERSION, len(text), 0) + body)
        return PREFIX.pack(MAGIC, FORMAT_VERSION, len(text), checksum) + body

    @staticmethod
    def packed_bytes(start: bytes) -> int:
        """The header extent's size, from the file's first 4 KiB. Raises CorruptPassageKVError."""
        if len(start) < EXTENT_ALIGNMENT:
            raise CorruptPassageKVError(f"a file of {len(start)} bytes is shorter than a header")
        magic, version, text_bytes, _ = PREFIX.unpack_from(start)
        if magic != MAGIC:
            raise CorruptPassageKVError(f"starts with {magic!r}, not {MAGIC!r}")
        if version != FORMAT_VERSION:
            raise CorruptPassageKVError(f"is of format version {version}, not {FORMAT_VERSION}")
        num_bytes = aligned(PREFIX.size + text_bytes)
        if num_bytes > MAX_HEADER_BYTES:
            raise CorruptPassageKVError(f"says that its header has {num_bytes} bytes, over {MAX_HEADER_BYTES}")
        return num_bytes

    @classmethod
    def unpack(cls, extent: bytes, *, file_bytes: int) -> Self:
        """Read the header's extent of a file of `file_bytes`.

        Raises CorruptPassageKVError unless every check holds: then the file is exactly as long as the
        header says, so what a reader allocates is bounded by what the file holds.
        """
        if len(extent) != cls.packed_bytes(extent[:EXTENT_ALIGNMENT]):
            raise CorruptPassageKVError(f"ends within its header, after {len(extent)} bytes")
        magic, version, text_bytes, checksum = PREFIX.unpack_from(extent)
        zeroed = PREFIX.pack(magic, version, text_bytes, 0) + extent[PREFIX.size :]
        if xxhash.xxh3_64_intdigest(zeroed) != checksum:
            raise CorruptPassageKVError("the header's checksum is wrong")
        try:
            header = cls.model_validate_json(extent[PREFIX.size : PREFIX.size + text_bytes])
            _ = header.key
        except (ValidationError, InvalidRequestError) as error:
            raise CorruptPassageKVError(f"the header is none: {error}") from error
        if len(extent) + header.payload_bytes != file_bytes:
            raise CorruptPassageKVError(
                f"has {file_bytes} bytes where its header says {len(extent) + header.payload_bytes}"
            )
        return header
