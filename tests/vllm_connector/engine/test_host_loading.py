"""Spans on their way into a request's pages on a CPU: by the kernels, ahead or not, and by plain PyTorch."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from kvblend.blend import RotaryTable, rerotate
from kvblend.core.identity import token_hash
from kvblend.host_kernels import HostKernels, HostPagedKV
from kvblend.store import DiskTier, OpenPassageKV, PassageKVKey, TieredStore
from kvblend.vllm_connector.engine.host_context import HostContext
from kvblend.vllm_connector.engine.host_loading import HostLoading, LoadedSpan, LoadingThreads, host_loading
from kvblend.vllm_connector.engine.host_pages import HostPages
from tests.host_kernels.paged_caches import host_pages, lay_out, page_tables, paged_cache, take_out

LAYERS, HEADS, DIM, PAGE_SIZE = 5, 2, 32, 32
LENGTHS, STARTS, SKIPPED, DELTAS = [70, 1, 45], [3, 73, 80], [2, 0, 0], [-20, 4, 0]
NUM_TOKENS, HIT = 125, 40
SCRATCHED = 1
"""The KV cache group whose pages are nobody else's: that of the odd layers."""
UNTOUCHED = -7.0
WAYS = ["plain", "kernels", "kernels, one ahead", "kernels, three ahead"]


class PagedLayers:
    """What loading asks of `HostPages`, over caches of our own: two groups, whose page tables differ."""

    def __init__(self, dtype: torch.dtype, order: str, kernels: HostKernels | None) -> None:
        self.kernels, self.order = kernels, order
        self.groups = [layer % 2 for layer in range(LAYERS)]
        self.scratched = frozenset({SCRATCHED})
        self.tables = {group: page_tables([NUM_TOKENS], PAGE_SIZE)[0] for group in (0, 1)}
        self.caches = [
            paged_cache(order, [empty(dtype)], [self.tables[group]], PAGE_SIZE, behind=UNTOUCHED)
            for group in self.groups
        ]

    def page_size(self, group: int) -> int:
        return PAGE_SIZE

    def cache(self, layer: int) -> Tensor:
        return self.caches[layer]

    def host_kv(self, layer: int) -> HostPagedKV:
        pages = host_pages(self.order, self.caches[layer])
        assert pages is not None
        return pages

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        for half, own in zip(halves := take_out(self.order, self.caches[layer]), (keys, values), strict=True):
            half[slots // PAGE_SIZE, slots % PAGE_SIZE] = own
        self.caches[layer].copy_(lay_out(self.order, *halves))

    def context(self) -> HostContext:
        return HostContext(cast(HostPages, self), self.tables, torch.zeros(NUM_TOKENS, dtype=torch.bool))


def empty(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    dense = torch.full((2, NUM_TOKENS, HEADS, DIM), UNTOUCHED, dtype=dtype)
    return dense[0], dense[1]


@contextmanager
def threads_of(way: str) -> Iterator[LoadingThreads]:
    with closing(LoadingThreads()) as threads:
        threads.num_threads = {"kernels, one ahead": 1, "kernels, three ahead": 3}.get(way, 0)
        threads._executor = ThreadPoolExecutor(3)  # however many cores this machine has
        yield threads


def store_of(folder: Path) -> TieredStore:
    return TieredStore([DiskTier(folder, budget_bytes=1 << 24)])


def put(store: TieredStore, number: int, kv: Tensor, *, capture_position: int = 0) -> OpenPassageKV:
    key = PassageKVKey("model", token_hash([1]), token_hash([number]), 0, HEADS)
    store.put(key, kv, capture_position=capture_position)
    file = store.open(key)
    assert file is not None
    return file


def table_of(num_positions: int, *, rotary_dim: int = DIM, interleaved: bool = False) -> RotaryTable:
    angles = torch.arange(num_positions)[:, None] * 100.0 ** (-torch.arange(0, rotary_dim, 2) / rotary_dim)
    return RotaryTable(angles.cos(), angles.sin(), interleaved=interleaved)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("order", ["plain", "packed"])
@pytest.mark.parametrize("way", WAYS)
def test_loading(tmp_path: Path, kernels: HostKernels, dtype: torch.dtype, order: str, way: str) -> None:
    """Reference: `rerotate`, laid out densely. Ours: each way, layer by layer, to the bit.

    Skipped tokens, blocks that others share, a span that proves corrupt in its last layer, a layer without rotary.
    """
    torch.manual_seed(0)
    store = store_of(tmp_path)
    stored = [torch.randn(LAYERS, 2, length, HEADS, DIM).to(dtype) for length in LENGTHS]
    files = [put(store, index, kv, capture_position=STARTS[index] - DELTAS[index]) for index, kv in enumerate(stored)]
    content = bytearray((path := tmp_path / files[2].header.key.file_name).read_bytes())
    content[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)
    whole, partial = table_of(64), table_of(64, rotary_dim=16, interleaved=True)
    tables = [whole, partial, None, whole, partial]
    spans = [LoadedSpan(*span) for span in zip(files, STARTS, SKIPPED, strict=True)]
    pages = PagedLayers(dtype, order, None if way == "plain" else kernels)
    before = [cache.clone() for cache in pages.caches]
    with (
        threads_of(way) as threads,
        closing(host_loading(threads, pages.context(), tables, spans, hit=HIT)) as loading,
    ):
        assert loading.num_layers == LAYERS and not loading.is_complete
        for layer in range(LAYERS):
            loading.ready(layer)
            sound = stored if layer < LAYERS - 1 else stored[:2]
            assert torch.equal(pages.caches[layer], expected(pages, layer, sound, tables[layer]))
            loading.ready(layer)
        if way == "plain":
            assert not torch.equal(pages.caches[0], before[0])
        assert loading.is_complete
        assert list(loading.failed) == [2] and "fails its checksum" in loading.failed[2]
        assert "layer 4" in loading.failed[2]
    for file in files:
        file.close()


def expected(pages: PagedLayers, layer: int, stored: list[Tensor], table: RotaryTable | None) -> Tensor:
    dtype, group = stored[0].dtype, pages.groups[layer]
    dense = empty(dtype)
    write_from = 0 if group == SCRATCHED else HIT
    for kv, start, delta, skipped in zip(stored, STARTS, DELTAS, SKIPPED, strict=False):
        keys = kv[layer, 0] if table is None else rerotate(kv[layer, 0], table, delta=delta)
        first = max(skipped, write_from - start)
        for half, own in zip(dense, (keys, kv[layer, 1]), strict=True):
            half[start + first : start + len(own)] = own[first:]
    return paged_cache(pages.order, [dense], [pages.tables[group]], PAGE_SIZE, behind=UNTOUCHED)


@pytest.mark.parametrize("way", WAYS)
def test_within_the_hit(tmp_path: Path, kernels: HostKernels, way: str) -> None:
    """A span of which every token lies in blocks that others share: nothing is written of it."""
    torch.manual_seed(0)
    kv = torch.randn(LAYERS, 2, 30, HEADS, DIM)
    pages = PagedLayers(torch.float32, "plain", None if way == "plain" else kernels)
    with (
        threads_of(way) as threads,
        put(store_of(tmp_path), 0, kv) as file,
        closing(host_loading(threads, pages.context(), [None] * LAYERS, [LoadedSpan(file, 3, 0)], hit=HIT)) as loading,
    ):
        loading.ready(LAYERS - 1)
        assert loading.failed == {}
        for layer, cache in enumerate(pages.caches):
            assert bool((cache == UNTOUCHED).all()) == (pages.groups[layer] != SCRATCHED)


@pytest.mark.parametrize("way", WAYS)
def test_closed_early(tmp_path: Path, kernels: HostKernels, way: str) -> None:
    """Nothing is written behind the end of `close`, and closing again does nothing."""
    pages = PagedLayers(torch.float32, "plain", None if way == "plain" else kernels)
    with threads_of(way) as threads, put(store_of(tmp_path), 0, torch.randn(LAYERS, 2, 70, HEADS, DIM)) as file:
        loading: HostLoading = host_loading(threads, pages.context(), [None] * LAYERS, [LoadedSpan(file, 0, 0)], hit=0)
        loading.ready(0)
        loading.close()
        before = [cache.clone() for cache in pages.caches]
        loading.close()
        assert bool((before[0] != UNTOUCHED).any())
    assert all(map(torch.equal, pages.caches, before))


@pytest.mark.parametrize("way", WAYS)
def test_beyond_the_rotary_table(tmp_path: Path, kernels: HostKernels, way: str) -> None:
    """An IndexError at once, before anything is written."""
    pages = PagedLayers(torch.float32, "plain", None if way == "plain" else kernels)
    far = table_of(4)
    kv = torch.randn(LAYERS, 2, 7, HEADS, DIM)
    with threads_of(way) as threads, put(store_of(tmp_path), 0, kv) as file, pytest.raises(IndexError):
        host_loading(threads, pages.context(), [None, far, far, far, far], [LoadedSpan(file, 90, 0)], hit=0)
    assert all(bool((cache == UNTOUCHED).all()) for cache in pages.caches)
