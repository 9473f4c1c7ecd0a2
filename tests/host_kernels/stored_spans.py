"""Files of random keys and values as the store lays them out, and what loading them into pages must give."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

import torch
import xxhash
from torch import Tensor

from kvblend.blend import RotaryTable, rerotate
from kvblend.core.settings import CodecName
from kvblend.host_kernels import ExtentSpan, LayerTarget
from kvblend.store.codecs import PassageCodec, codec_of, codec_spec
from kvblend.store.codecs.quantized import layer_shape
from tests.host_kernels.paged_caches import host_pages, page_tables, paged_cache

__all__ = ["PAYLOAD_START", "LayerShape", "Loaded", "StoredSpan", "rotary_table"]

PAYLOAD_START = 4096
UNTOUCHED = -7.0


@dataclass(frozen=True)
class LayerShape:
    """`rotary`: which table turns keys. `shift`: elements by which pages begin behind where tensors do."""

    order: str
    page_size: int
    rotary: int | None
    write_from: int = 0
    shift: int = 0


@dataclass(frozen=True)
class StoredSpan:
    """Tokens for positions from `start` on, moved by `delta`; `kv` is `[layer, k|v, token, kv_head, head_dim]`: the
    numbers that the codec gives back, which are not the ones that it was given.
    """

    kv: Tensor
    start: int
    skipped: int
    delta: int
    file: IO[bytes]
    extent_bytes: int
    checksums: list[int]
    codec: PassageCodec
    packed: list[Tensor]
    """Layers that must be unpacked first; none where they are read from the file."""
    left_out: int = 0

    @classmethod
    def random(
        cls,
        shape: Sequence[int],
        dtype: torch.dtype,
        *,
        start: int,
        skipped: int,
        delta: int,
        codec_name: CodecName = "raw",
        left_out: int = 0,
    ) -> "StoredSpan":
        numbers = (torch.randn(*shape) * torch.rand(shape[-1]).add(0.01) * 4).to(dtype)
        codec = codec_of(codec_spec(codec_name, shape[-1]))
        encoded = [codec.encode(layer) for layer in numbers]
        kv = torch.empty_like(numbers)
        for layer, stored in zip(kv, encoded, strict=True):
            codec.decode(stored, layer)
        layers = [stored.numpy().tobytes() for stored in encoded]
        extent_bytes = -(-codec.staged_bytes(layer_shape(kv[0]), dtype) // 4096) * 4096
        extents = [layer.ljust(extent_bytes, b"\0") for layer in layers]
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 -- `Loaded` closes it
        file.write(b"header".ljust(PAYLOAD_START, b"\0") + b"".join(extents))
        checksums = [xxhash.xxh3_64_intdigest(extent) for extent in extents]
        packed = encoded if codec.packs else []
        return cls(kv, start, skipped, delta, file, extent_bytes, checksums, codec, packed, left_out)

    def extents(self, tables: Sequence[RotaryTable]) -> ExtentSpan:
        return ExtentSpan(
            self.unpack if self.packed else (self.file.fileno(), PAYLOAD_START),
            self.extent_bytes,
            self.checksums,
            self.kv.shape[2],
            self.start,
            self.skipped,
            [table.angles(self.delta) for table in tables] if self.delta else [],
            self.codec.staged_as,
            self.codec.scales_at(layer_shape(self.kv[0]), self.kv.dtype),
            left_out=self.left_out,
        )

    def unpack(self, layer: int, extent: Tensor) -> None:
        shape = layer_shape(self.kv[0])
        staged = extent[: self.codec.staged_bytes(shape, self.kv.dtype)]
        self.codec.unpack(self.packed[layer], staged, shape)

    def damage(self, layer: int) -> None:
        """Turn a bit of a layer's extent."""
        place = PAYLOAD_START + layer * self.extent_bytes + 99
        (byte,) = os.pread(self.file.fileno(), 1, place)
        os.pwrite(self.file.fileno(), bytes([byte ^ 16]), place)


class Loaded:
    """A request's pages in every layer, untouched, and the same with what spans bring, by PyTorch."""

    def __init__(
        self, shapes: Sequence[LayerShape], tables: Sequence[RotaryTable], spans: Sequence[StoredSpan]
    ) -> None:
        self.tables, self.spans, self.shapes = tables, spans, shapes
        self.num_tokens = max(span.start + span.kv.shape[2] for span in spans)
        self.page_tables = [page_tables([self.num_tokens], shape.page_size)[0] for shape in shapes]
        self.caches = [
            _untouched(self._dense(), table, shape) for table, shape in zip(self.page_tables, shapes, strict=True)
        ]

    def targets(self) -> list[LayerTarget]:
        targets = []
        for shape, cache, table in zip(self.shapes, self.caches, self.page_tables, strict=True):
            pages = host_pages(shape.order, cache)
            assert pages is not None
            interleaved = shape.rotary is not None and self.tables[shape.rotary].interleaved
            targets.append(LayerTarget(pages, cache, table, shape.write_from, shape.rotary, interleaved))
        return targets

    def expected(self, layer: int, spans: Sequence[StoredSpan] | None = None) -> Tensor:
        """A layer's cache once some spans are there, or all."""
        shape, dense = self.shapes[layer], self._dense()
        for span in self.spans if spans is None else spans:
            keys, values = span.kv[layer]
            if shape.rotary is not None:
                keys = rerotate(keys, self.tables[shape.rotary], delta=span.delta)
            first = max(span.skipped, shape.write_from - span.start)
            stop = len(keys) - span.left_out
            for half, own in zip(dense, (keys, values), strict=True):
                half[span.start + first : span.start + stop] = own[first:stop]
        table = self.page_tables[layer]
        return paged_cache(shape.order, [(dense[0], dense[1])], [table], shape.page_size, behind=UNTOUCHED)

    def differing(self, spans: Sequence[StoredSpan] | None = None) -> list[int]:
        """Layers whose caches are not `expected`, to the bit."""
        bits = torch.int16 if self.caches[0].element_size() == 2 else torch.int32
        return [
            layer
            for layer, cache in enumerate(self.caches)
            if not torch.equal(cache.contiguous().view(bits), self.expected(layer, spans).view(bits))
        ]

    def close(self) -> None:
        for span in self.spans:
            span.file.close()

    def _dense(self) -> Tensor:
        kv = self.spans[0].kv
        return torch.full((2, self.num_tokens, *kv.shape[3:]), UNTOUCHED, dtype=kv.dtype)


def _untouched(dense: Tensor, table: Tensor, shape: LayerShape) -> Tensor:
    """A cache whose pages lie `shift` elements off a cache line, with as many between them."""
    whole = paged_cache(shape.order, [(dense[0], dense[1])], [table], shape.page_size, behind=UNTOUCHED)
    if shape.shift == 0:
        return whole
    room = torch.full((len(whole), whole[0].numel() + shape.shift), UNTOUCHED, dtype=whole.dtype)
    return room[:, shape.shift :].view(whole.shape)


def rotary_table(rotary_dim: int, *, interleaved: bool) -> RotaryTable:
    angles = torch.arange(600)[:, None] * 10000.0 ** (-torch.arange(0, rotary_dim, 2) / rotary_dim)
    return RotaryTable(angles.cos(), angles.sin(), interleaved=interleaved)
