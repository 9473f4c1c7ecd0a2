"""Stored passages on their way into pages, against PyTorch, to the bit."""

import errno
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import cycle
from typing import get_args

import pytest
import torch
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvblend.core.settings import CodecName
from kvblend.host_kernels import HostKernels, KernelLoading, SpanFailure
from tests.host_kernels.stored_spans import PAYLOAD_START, LayerShape, Loaded, StoredSpan, rotary_table

DTYPES = [torch.float32, torch.bfloat16]
SPANS = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 150), st.integers(0, 150), st.integers(-500, 500)),
    min_size=1,
    max_size=4,
)
"""(positions before it that nobody fills, and as many of its last tokens; tokens, of which skipped at most, delta)"""


@contextmanager
def loading_of(kernels: HostKernels, loaded: Loaded) -> Iterator[KernelLoading]:
    spans = [span.extents(loaded.tables) for span in loaded.spans]
    with closing(loaded), KernelLoading(kernels, loaded.targets(), spans) as loading:
        yield loading


def stored(
    spans: list[tuple[int, int, int, int]],
    num_layers: int,
    heads: int,
    dim: int,
    dtype: torch.dtype,
    codecs: Sequence[CodecName] = ("raw",),
) -> list[StoredSpan]:
    """Spans one after the other, by each of the codecs in turn."""
    made, start = [], 0
    for (gap, length, skipped, delta), codec in zip(spans, cycle(codecs)):
        start += gap
        shape = (num_layers, 2, length, heads, dim)
        skipped = min(skipped, length)
        kept = {"start": start, "skipped": skipped, "left_out": min(gap, length - skipped)}
        made.append(StoredSpan.random(shape, dtype, **kept, delta=delta, codec_name=codec))
        start += length
    return made


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", ["plain", "packed"])
@settings(max_examples=60)
@example([(0, 128, 0, 77), (0, 128, 0, 0), (3, 97, 5, -9)], 2, 64, 32, False, False, 0, 0, 1, 0, ["raw"])
@example([(5, 150, 0, 123)], 1, 512, 64, False, True, 0, 0, 1, 0, ["raw"])
@example([(0, 128, 0, 77), (0, 128, 0, 0), (3, 97, 5, -9)], 2, 64, 32, False, False, 0, 0, 3, 0, ["entropy", "int8"])
@example(
    [(1, 129, 0, 77), (0, 33, 40, 0), (3, 97, 5, -9)], 2, 128, 64, True, False, 0, 0, 1, 0, ["int4", "fp8", "int8"]
)
@given(
    spans=SPANS,
    heads=st.integers(1, 3),
    dim=st.sampled_from([16, 32, 64, 80, 128]),
    page_size=st.sampled_from([32, 64, 128]),
    partial=st.booleans(),
    interleaved=st.booleans(),
    write_from=st.sampled_from([0, 0, 1, 33, 64, 1000]),
    shift=st.sampled_from([0, 0, 1, 2, 16]),
    num_threads=st.sampled_from([1, 1, 3]),
    seed=st.integers(0, 999),
    codecs=st.lists(st.sampled_from(get_args(CodecName)), min_size=1, max_size=3),
)
def test_load(
    kernels: HostKernels,
    dtype: torch.dtype,
    order: str,
    spans: list[tuple[int, int, int, int]],
    heads: int,
    dim: int,
    page_size: int,
    partial: bool,
    interleaved: bool,
    write_from: int,
    shift: int,
    num_threads: int,
    seed: int,
    codecs: list[CodecName],
) -> None:
    """Reference: `rerotate` of every layer, laid out by reshaping. Ours: `KernelLoading`, all threads at once."""
    torch.manual_seed(seed)
    tables = [
        rotary_table(dim // 4 * 2 if partial else dim, interleaved=interleaved),
        rotary_table(dim, interleaved=not interleaved),
    ]
    shapes = [
        LayerShape(order, page_size, rotary=0, write_from=write_from, shift=shift),
        LayerShape(order, page_size, rotary=None, write_from=write_from),
        LayerShape("plain", 32, rotary=1),
        LayerShape(order, page_size, rotary=0),
    ]
    loaded = Loaded(shapes, tables, stored(spans, len(shapes), heads, dim, dtype, codecs))
    with loading_of(kernels, loaded) as loading:
        run_by(num_threads, loading)
        assert loading.failures() == {} and loaded.differing() == []


def run_by(num_threads: int, loading: KernelLoading) -> None:
    """Load everything, by so many threads at once."""
    with ThreadPoolExecutor(num_threads) as executor:
        for work in [executor.submit(loading.run) for _ in range(num_threads)]:
            work.result()


def small(
    dtype: torch.dtype = torch.bfloat16,
    num_layers: int = 4,
    lengths: tuple[int, ...] = (40, 7, 61),
    codecs: Sequence[CodecName] = ("raw",),
) -> Loaded:
    torch.manual_seed(0)
    spans = stored(
        [(1, length, 0, 11 * place) for place, length in enumerate(lengths)], num_layers, 2, 64, dtype, codecs
    )
    return Loaded([LayerShape("plain", 32, 0)] * num_layers, [rotary_table(64, interleaved=False)], spans)


def test_what_moves_it(kernels: HostKernels) -> None:
    """Reference: one position farther, or one element more by an ulp. Ours: as it was, which neither is equal to."""
    loaded = small(torch.float32)
    with loading_of(kernels, loaded) as loading:
        loading.run()
        assert loaded.differing() == []
        loaded.spans[1].kv[2, 1, 3, 0, 5] += 1e-6
        assert loaded.differing() == [2]
        object.__setattr__(loaded.spans[2], "delta", loaded.spans[2].delta + 1)
        assert loaded.differing() == [0, 1, 2, 3]


@pytest.mark.parametrize("codec", ["int8", "entropy", "fp8", "int4"])
def test_what_moves_codes(kernels: HostKernels, codec: CodecName) -> None:
    """Reference: a key moved by one bf16 step, then scales that are their neighbours'. Ours: neither is equal to it."""
    loaded = small(codecs=[codec])
    with loading_of(kernels, loaded) as loading:
        loading.run()
        assert loaded.differing() == []
        loaded.spans[1].kv[2, 1, 3, 0, 5] += 0.25
        assert loaded.differing() == [2]
    shifted = small(codecs=[codec])
    spans = [span.extents(shifted.tables) for span in shifted.spans]
    spans[0] = replace(spans[0], scales_at=spans[0].scales_at + 2)
    with closing(shifted), KernelLoading(kernels, shifted.targets(), spans) as loading:
        loading.run()
        assert shifted.differing() == [0, 1, 2, 3]


@pytest.mark.parametrize("num_threads", [1, 3])
def test_cannot_be_unpacked(kernels: HostKernels, num_threads: int) -> None:
    """Of a span whose layer 2 is no frame, that is said; the other spans are whole. What nobody expects is raised."""
    loaded = small(codecs=["entropy"])
    loaded.spans[1].packed[2][-50:] = 0
    spans = [span.extents(loaded.tables) for span in loaded.spans]
    with closing(loaded):
        with KernelLoading(kernels, loaded.targets(), spans, expected=(ValueError,)) as loading:
            run_by(num_threads, loading)
            failure = loading.failures().pop(1)
            assert failure.layer == 2 and failure.reason.startswith("cannot be used: zstd")
            others = [loaded.spans[0], loaded.spans[2]]
            assert not {0, 1} & set(loaded.differing()) and not {2} & set(loaded.differing(others))
        with (
            KernelLoading(kernels, loaded.targets(), spans, expected=(OSError,)) as loading,
            pytest.raises(ValueError, match="zstd"),
        ):
            run_by(num_threads, loading)


def test_nothing_to_load(kernels: HostKernels) -> None:
    loaded = small()
    untouched = [cache.clone() for cache in loaded.caches]
    with closing(loaded), KernelLoading(kernels, loaded.targets(), []) as loading:
        loading.run()
        assert loading.failures() == {} and all(map(torch.equal, loaded.caches, untouched))


def test_run_again(kernels: HostKernels) -> None:
    """Nothing is loaded twice."""
    loaded = small()
    with loading_of(kernels, loaded) as loading:
        loading.run()
        assert loaded.differing() == []
        loaded.caches[0].zero_()
        loading.run()
        assert not bool(loaded.caches[0].any())


def test_closed_twice(kernels: HostKernels) -> None:
    """What is loaded stays, and closing twice is closing once."""
    loaded = small()
    with loading_of(kernels, loaded) as loading:
        loading.run()
        loading.close()
        loading.close()
        assert loaded.differing() == []


@pytest.mark.parametrize("num_threads", [1, 3])
def test_corrupt_layer(kernels: HostKernels, num_threads: int) -> None:
    """Of a span with a wrong bit in layer 2, layers below are there and 2 is not; the other spans are whole."""
    loaded = small()
    loaded.spans[1].damage(2)
    with loading_of(kernels, loaded) as loading:
        run_by(num_threads, loading)
        assert loading.failures() == {1: SpanFailure(2, "fails its checksum")}
        others = [loaded.spans[0], loaded.spans[2]]
        if num_threads == 1:
            assert loaded.differing(others) == [0, 1] and loaded.differing() == [2, 3]
        else:  # others may have been at layer 3 when it showed
            assert loaded.differing(others) in ([0, 1], [0, 1, 3]) and loaded.differing() in ([2, 3], [2])


def test_last_layer_corrupt(kernels: HostKernels) -> None:
    """A bit in the padding counts, too."""
    loaded = small()
    file = loaded.spans[2].file.fileno()
    os.pwrite(file, b"\1", os.fstat(file).st_size - 1)
    with loading_of(kernels, loaded) as loading:
        loading.run()
        assert loading.failures() == {2: SpanFailure(3, "fails its checksum")}
        assert loaded.differing() == [3] and loaded.differing(loaded.spans[:2]) == [0, 1, 2]


@pytest.mark.parametrize("num_threads", [1, 3])
def test_truncated(kernels: HostKernels, num_threads: int) -> None:
    """Of a span that ends in layer 1, layer 0 is there; the other spans are whole."""
    loaded = small()
    span = loaded.spans[0]
    os.ftruncate(span.file.fileno(), PAYLOAD_START + 2 * span.extent_bytes - 1)
    with loading_of(kernels, loaded) as loading:
        run_by(num_threads, loading)
        failure = loading.failures().pop(0)
        assert failure.reason == "ends before its layer's end" and 1 <= failure.layer <= (1 if num_threads == 1 else 3)
        assert loaded.differing() == [1, 2, 3] and loaded.differing(loaded.spans[1:]) == [0]


def test_closed_descriptor(kernels: HostKernels) -> None:
    """Of a span whose file cannot be read, nothing is there; the other spans are whole."""
    loaded = small()
    with loading_of(kernels, loaded) as loading:
        loaded.spans[0].file.close()
        loading.run()
        assert loading.failures() == {0: SpanFailure(0, f"cannot be read: {os.strerror(errno.EBADF)}")}
        assert loaded.differing(loaded.spans[1:]) == [] and loaded.differing() == [0, 1, 2, 3]


@settings(max_examples=300)
@example(b"\0", 240)
@example(b"\1", 1024)
@example(b"\1", 1025)
@example(b"ab", 1 << 20)
@given(start=st.binary(min_size=1, max_size=64), more=st.integers(240, 5000))
def test_checksum(kernels: HostKernels, start: bytes, more: int) -> None:
    """Reference: xxhash's own. Ours: `kvblend_checksum`, of more than 240 bytes."""
    torch.manual_seed(more)
    data = start + torch.randint(0, 256, (more,), dtype=torch.uint8).numpy().tobytes()
    assert kernels.library.kvblend_checksum(data, len(data)) == xxhash.xxh3_64_intdigest(data)
