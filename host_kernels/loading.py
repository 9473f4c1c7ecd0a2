"""Stored passages on their way into pages, by as many threads as there are for it."""

import ctypes
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import accumulate
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from kvblend.host_kernels.build import HostKernels
from kvblend.host_kernels.pages import HostPagedKV
from kvblend.host_kernels.structures import Bring, LoadLayer, LoadSpan
from kvblend.triton_kernels import Codec

__all__ = ["ExtentSpan", "KernelLoading", "LayerTarget", "SpanFailure"]


class _Failure(IntEnum):
    """As in `csrc/load.cpp`."""

    SOUND = 0
    CHECKSUM = 1
    TOO_SHORT = 2
    READ_ERROR = 3
    NOT_BROUGHT = 4


CODECS = {"raw": 0, "int8_channel": 1, "fp8": 2, "int4": 3}
"""As `CodecKind` in `csrc/codes.h`."""


@dataclass(frozen=True)
class ExtentSpan:
    """Tokens of one passage, of which each layer is an extent: keys and values, in codes or not, then scales.

    file: a descriptor and the byte where layer 0 begins, where layers lie one after the other in an open file; else
    whatever writes a layer, checked, into uint8 `[extent_bytes]`, from several threads at once. checksums: xxh3_64 of
    each layer's extent in a file. The first token goes to position `start`; the first `skipped` and the last `left_out`
    stay out.
    rotations: cos and sin fp32 `[half]` by which keys turn, one for each rotary table of the model; none where the span
    stays where it was computed. scales_at: the byte of an extent.
    """

    file: tuple[int, int] | Callable[[int, Tensor], None]
    extent_bytes: int
    checksums: Sequence[int]
    num_tokens: int
    start: int
    skipped: int
    rotations: Sequence[tuple[Tensor, Tensor]]
    codec: Codec = field(default_factory=Codec)
    scales_at: int = 0
    left_out: int = 0


@dataclass(frozen=True)
class LayerTarget:
    """Where a layer's tokens go: `cache` in the order of `pages`, the request's pages `table` int32 `[num_pages]`.

    Tokens at positions below `write_from` are not written: others share their blocks. `rotary`: which of a span's
    rotations turns its keys, None where they do not turn; `interleaved`: whether pairs are neighbours.
    """

    pages: HostPagedKV
    cache: Tensor
    table: Tensor
    write_from: int
    rotary: int | None
    interleaved: bool


@dataclass(frozen=True)
class SpanFailure:
    """A layer that could not be used."""

    layer: int
    reason: str


class KernelLoading:
    """Reads, checks, rotates and writes every layer of every span, a layer's spans before the next layer's.

    Use it as a context manager. `run` is called from any number of threads at once, which share the work. A span of
    which a layer fails is left as it is; the others go on.
    """

    def __init__(
        self,
        kernels: HostKernels,
        targets: Sequence[LayerTarget],
        spans: Sequence[ExtentSpan],
        expected: tuple[type[Exception], ...] = (OSError,),
    ) -> None:
        """expected: what a span that is no file raises where a layer cannot be used; anything else `run` raises."""
        self._library = kernels.library
        self._spans, self._expected = spans, expected
        self._reasons: dict[int, str] = {}
        self._errors: list[Exception] = []
        widths = [len(cos) for cos, _ in next((span.rotations for span in spans if span.rotations), ())]
        begins = [0, *accumulate(2 * width for width in widths)]
        checksums = [(ctypes.c_uint64 * len(span.checksums))(*span.checksums) for span in spans]
        angles = [torch.cat([torch.cat(pair) for pair in span.rotations]) if span.rotations else None for span in spans]
        layers = (LoadLayer * len(targets))()
        for layer, target in zip(layers, targets, strict=True):
            layer.pages, layer.table = target.pages.structure(target.cache), target.table.data_ptr()
            layer.write_from, layer.interleaved = target.write_from, target.interleaved
            rotary = target.rotary if widths else None
            layer.angles_at, layer.half = (-1, 0) if rotary is None else (begins[rotary], widths[rotary])
        files = (LoadSpan * len(spans))()
        for file, span, own_checksums, own_angles in zip(files, spans, checksums, angles, strict=True):
            assert len(span.rotations) in (0, len(widths))
            assert not isinstance(span.file, tuple) or len(span.checksums) == len(targets)
            file.checksums = ctypes.addressof(own_checksums)
            file.angles = None if own_angles is None else own_angles.data_ptr()
            file.fd, file.payload_start = span.file if isinstance(span.file, tuple) else (-1, 0)
            file.extent_bytes, file.scales_at = span.extent_bytes, span.scales_at
            file.codec, file.group_size = CODECS[span.codec.name], span.codec.group_size
            file.num_tokens, file.skipped, file.start = span.num_tokens, span.skipped, span.start
            file.stop = span.num_tokens - span.left_out
        bring = Bring(self._bring)
        self._held = (targets, checksums, angles, bring)
        """What the structures point to."""
        self._load = self._library.kvblend_load_new(layers, len(targets), files, len(spans), bring)

    def run(self) -> None:
        """Load what no other thread has taken up; all is there when every thread has returned."""
        assert self._load is not None, "it is closed"
        self._library.kvblend_load_run(self._load)
        if self._errors:
            raise self._errors[0]

    def failures(self) -> dict[int, SpanFailure]:
        """What has failed so far, by the span's place."""
        assert self._load is not None, "it is closed"
        failed = {}
        for place in range(len(self._spans)):
            state = self._library.kvblend_load_state(self._load, place)
            if state.failure == _Failure.CHECKSUM:
                failed[place] = SpanFailure(state.layer, "fails its checksum")
            elif state.failure == _Failure.TOO_SHORT:
                failed[place] = SpanFailure(state.layer, "ends before its layer's end")
            elif state.failure == _Failure.READ_ERROR:
                failed[place] = SpanFailure(state.layer, f"cannot be read: {os.strerror(state.error)}")
            elif state.failure == _Failure.NOT_BROUGHT:
                failed[place] = SpanFailure(state.layer, f"cannot be used: {self._reasons[place]}")
        return failed

    def _bring(self, place: int, layer: int, address: int) -> int:
        """What the kernels call for a layer of a span that is no file. An error must not pass through them."""
        span = self._spans[place]
        assert not isinstance(span.file, tuple)
        try:
            memory = (ctypes.c_uint8 * span.extent_bytes).from_address(address)
            span.file(layer, torch.frombuffer(memory, dtype=torch.uint8))
        except self._expected as error:
            self._reasons.setdefault(place, str(error))
            return 1
        except Exception as error:
            self._reasons.setdefault(place, repr(error))
            self._errors.append(error)
            return 1
        return 0

    def close(self) -> None:
        """Free it. No thread may be in `run`. Idempotent."""
        if self._load is not None:
            self._library.kvblend_load_delete(self._load)
            self._load = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
