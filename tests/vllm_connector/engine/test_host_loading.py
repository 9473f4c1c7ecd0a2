"""Passages on their way into a request's pages on a CPU: by the kernels, with helpers or not, and by plain PyTorch."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from kvblend.blend import RotaryTable, rerotate
from kvblend.core.identity import token_hash
from kvblend.core.settings import CodecName
from kvblend.host_kernels import HostKernels, HostPagedKV
from kvblend.store import DiskTier, OpenPassageKV, PassageKVKey, StoredPassageKV, TieredStore
from kvblend.vllm_connector.engine.host_context import HostContext
from kvblend.vllm_connector.engine.host_loading import HostLoader
from kvblend.vllm_connector.engine.host_pages import HostPages
from kvblend.vllm_connector.engine.pages import PlacedKV
from tests.host_kernels.paged_caches import host_pages, lay_out, page_tables, paged_cache, take_out

LAYERS, HEADS, DIM, PAGE_SIZE = 5, 2, 32, 32
LENGTHS, STARTS, SKIPPED, DELTAS = [70, 1, 45], [3, 73, 80], [2, 0, 0], [-20, 4, 0]
NUM_TOKENS, HIT = 125, 40
SCRATCHED = 1
"""The KV cache group whose pages are nobody else's: that of the odd layers."""
UNTOUCHED = -7.0
WAYS = ["plain", "kernels", "kernels, three helpers"]


@dataclass(frozen=True)
class PagedLayer:
    """What loading asks of a `LayerCache`."""

    group: int
    rotary: RotaryTable | None


class PagedLayers:
    """What loading asks of `HostPages`, over caches of our own: two groups, whose page tables differ.

    tables: each layer's rotary table, None where its keys do not turn.
    """

    def __init__(self, dtype: torch.dtype, order: str, tables: Sequence[RotaryTable | None]) -> None:
        self.order = order
        self.layers = [PagedLayer(layer % 2, table) for layer, table in enumerate(tables)]
        self.scratched = frozenset({SCRATCHED})
        self.tables = {group: page_tables([NUM_TOKENS], PAGE_SIZE)[0] for group in (0, 1)}
        self.caches = [
            paged_cache(order, [empty(dtype)], [self.tables[layer.group]], PAGE_SIZE, behind=UNTOUCHED)
            for layer in self.layers
        ]

    def page_size(self, group: int) -> int:
        return PAGE_SIZE

    def write_from(self, group: int, hit: int) -> int:
        return 0 if group in self.scratched else hit

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
def loader_of(way: str, kernels: HostKernels) -> Iterator[HostLoader]:
    with closing(HostLoader(None if way == "plain" else kernels)) as loader:
        loader._num_helpers = 3 if way == "kernels, three helpers" else 0
        loader._helpers = ThreadPoolExecutor(3)  # however many cores this machine has
        yield loader


def store_of(folder: Path) -> TieredStore:
    return TieredStore([DiskTier(folder, budget_bytes=1 << 24)])


def put(store: TieredStore, number: int, kv: Tensor, *, capture_position: int = 0) -> OpenPassageKV:
    key = PassageKVKey("model", token_hash([1]), token_hash([number]), 0, HEADS)
    store.put(key, kv, capture_position=capture_position)
    return store.open_many([key])[key]


def table_of(num_positions: int, *, rotary_dim: int = DIM, interleaved: bool = False) -> RotaryTable:
    angles = torch.arange(num_positions)[:, None] * 100.0 ** (-torch.arange(0, rotary_dim, 2) / rotary_dim)
    return RotaryTable(angles.cos(), angles.sin(), interleaved=interleaved)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("order", ["plain", "packed"])
@pytest.mark.parametrize("way", WAYS)
def test_loading(tmp_path: Path, kernels: HostKernels, dtype: torch.dtype, order: str, way: str) -> None:
    """Reference: `rerotate`, laid out densely. Ours: each way, to the bit.

    Skipped tokens, blocks that others share, a passage that proves corrupt in its last layer, a layer without rotary.
    """
    torch.manual_seed(0)
    store = store_of(tmp_path)
    stored = [torch.randn(LAYERS, 2, length, HEADS, DIM).to(dtype) for length in LENGTHS]
    files = [put(store, index, kv, capture_position=STARTS[index] - DELTAS[index]) for index, kv in enumerate(stored)]
    damage(tmp_path / files[2].header.key.file_name)
    whole, partial = table_of(64), table_of(64, rotary_dim=16, interleaved=True)
    pages = PagedLayers(dtype, order, [whole, partial, None, whole, partial])
    passages = [PlacedKV(*passage) for passage in zip(files, STARTS, SKIPPED, strict=True)]
    before = [cache.clone() for cache in pages.caches]
    with loader_of(way, kernels) as loader:
        failed = loader.load(pages.context(), passages, hit=HIT)
    assert list(failed) == [2] and "layer 4" in failed[2] and "fails its checksum" in failed[2]
    assert (failed[2] == "layer 4 fails its checksum") == (way != "plain")  # the kernels' own words
    for layer, cache in enumerate(pages.caches):
        assert not torch.equal(cache, before[layer])
        # layers below the one that fails stay as they are
        assert torch.equal(cache, expected(pages, layer, stored if layer < LAYERS - 1 else stored[:2]))
    for file in files:
        file.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("order", ["plain", "packed"])
@pytest.mark.parametrize("codec", ["fp8", "int8", "int4", "entropy"])
@pytest.mark.parametrize("way", WAYS)
def test_coded_passages_among_raw_ones(
    tmp_path: Path, kernels: HostKernels, way: str, codec: CodecName, order: str, dtype: torch.dtype
) -> None:
    """Reference: the numbers that the codec gives back, laid out densely. Ours: each way, to the bit."""
    torch.manual_seed(0)
    raw, coded = (
        store_of(tmp_path / "raw"),
        TieredStore([DiskTier(tmp_path / "coded", budget_bytes=1 << 24)], codec=codec),
    )
    files, stored = [], []
    for index, length in enumerate(LENGTHS):
        kv = torch.randn(LAYERS, 2, length, HEADS, DIM).to(dtype)
        at = STARTS[index] - DELTAS[index]
        files.append(put(raw if index == 0 else coded, index, kv, capture_position=at))
        file = files[-1]
        assert isinstance(file, StoredPassageKV)
        stored.append(file.read().clone())
        assert torch.equal(stored[-1], kv) == (index == 0) or length == 1  # one token may be its own scale
    damage(tmp_path / "coded" / files[2].header.key.file_name)
    pages = PagedLayers(dtype, order, [table_of(64), None, table_of(64), table_of(64), None])
    passages = [PlacedKV(*passage) for passage in zip(files, STARTS, SKIPPED, strict=True)]
    with loader_of(way, kernels) as loader:
        failed = loader.load(pages.context(), passages, hit=HIT)
    assert list(failed) == [2] and "layer 4" in failed[2] and "fails its checksum" in failed[2]
    for layer, cache in enumerate(pages.caches):
        assert torch.equal(cache, expected(pages, layer, stored if layer < LAYERS - 1 else stored[:2]))
    for file in files:
        file.close()


def damage(path: Path) -> None:
    """In the last layer."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)


def expected(pages: PagedLayers, layer: int, stored: list[Tensor]) -> Tensor:
    dtype, group, table = stored[0].dtype, pages.layers[layer].group, pages.layers[layer].rotary
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
    """A passage of which every token lies in blocks that others share: nothing is written of it."""
    torch.manual_seed(0)
    kv = torch.randn(LAYERS, 2, 30, HEADS, DIM)
    pages = PagedLayers(torch.float32, "plain", [None] * LAYERS)
    with loader_of(way, kernels) as loader, put(store_of(tmp_path), 0, kv) as file:
        assert loader.load(pages.context(), [PlacedKV(file, 3, 0)], hit=HIT) == {}
    for layer, cache in zip(pages.layers, pages.caches, strict=True):
        assert bool((cache == UNTOUCHED).all()) == (layer.group != SCRATCHED)


@pytest.mark.parametrize("order", ["plain", "packed"])
@pytest.mark.parametrize("way", WAYS)
def test_part_of_a_passage(tmp_path: Path, kernels: HostKernels, way: str, order: str) -> None:
    """Reference: its middle, laid out densely. Ours: each way; what is cut off would stand outside of the context."""
    torch.manual_seed(0)
    kv, start, skipped, left_out = torch.randn(LAYERS, 2, 150, HEADS, DIM), -13, 15, 20
    pages = PagedLayers(torch.float32, order, [table_of(200), None, table_of(200), None, None])
    with loader_of(way, kernels) as loader, put(store_of(tmp_path), 0, kv, capture_position=40) as file:
        passage = PlacedKV(file, start, skipped, left_out=left_out)
        assert loader.load(pages.context(), [passage], hit=0) == {}
    for index, layer in enumerate(pages.layers):
        keys, values = kv[index]
        dense = empty(torch.float32)
        for half, own in zip(
            dense, (keys if layer.rotary is None else rerotate(keys, layer.rotary, delta=-53), values), strict=True
        ):
            half[start + skipped : start + 150 - left_out] = own[skipped : 150 - left_out]
        expected = paged_cache(order, [dense], [pages.tables[layer.group]], PAGE_SIZE, behind=UNTOUCHED)
        assert torch.equal(pages.caches[index], expected)


@pytest.mark.parametrize("way", WAYS)
def test_beyond_the_rotary_table(tmp_path: Path, kernels: HostKernels, way: str) -> None:
    """An IndexError, before anything is written."""
    far = table_of(4)
    pages = PagedLayers(torch.float32, "plain", [None, far, far, far, far])
    kv = torch.randn(LAYERS, 2, 7, HEADS, DIM)
    with (
        loader_of(way, kernels) as loader,
        put(store_of(tmp_path), 0, kv) as file,
        pytest.raises(IndexError),
    ):
        loader.load(pages.context(), [PlacedKV(file, 90, 0)], hit=0)
    assert all(bool((cache == UNTOUCHED).all()) for cache in pages.caches)
