"""Spans on their way into pages on a CPU, by threads of their own and by the one that asks."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from kvblend.blend import RotaryTable, rerotate
from kvblend.core.identity import token_hash
from kvblend.store import DiskTier, OpenPassageKV, PassageKVKey, TieredStore
from kvblend.vllm_connector.host_loading import HostLoading, LoadedSpan, LoadingThreads
from kvblend.vllm_connector.host_pages import HostPages

LAYERS, HEADS, DIM, HIT = 5, 2, 8, 3
LENGTHS = [7, 1, 12]
DELTAS = [20, -4, 0]


class PlainPages:
    """Pages of one group as a tensor by slot: `[layer, k|v, slot, kv_head, head_dim]`; NaN where nothing is written."""

    def __init__(self, dtype: torch.dtype) -> None:
        cache = torch.empty(0, dtype=dtype)
        layer = SimpleNamespace(num_kv_heads=HEADS, head_dim=DIM, layer=SimpleNamespace(kv_cache=cache))
        self.layers, self.groups = [layer] * LAYERS, [0] * LAYERS
        self.kv = torch.full((LAYERS, 2, 40, HEADS, DIM), torch.nan, dtype=dtype)

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        self.kv[layer, 0, slots], self.kv[layer, 1, slots] = keys, values


def threads(count: int) -> LoadingThreads:
    made = LoadingThreads()
    made.num_threads = count
    return made


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return cast(torch.dtype, request.param)


@pytest.mark.parametrize("num_threads", [0, 1, 3])
@pytest.mark.parametrize("for_probe", [True, False])
def test_loading(tmp_path: Path, dtype: torch.dtype, num_threads: int, for_probe: bool) -> None:
    """Reference: rotated by PyTorch. Skipped tokens, shared blocks, a corrupt span, a hit."""
    torch.manual_seed(0)
    store = TieredStore([DiskTier(tmp_path, budget_bytes=1 << 24)])
    stored = [torch.randn(LAYERS, 2, length, HEADS, DIM).to(dtype) for length in LENGTHS]
    files = [put(store, index, kv) for index, kv in enumerate(stored)]
    content = bytearray((path := tmp_path / files[2].header.key.file_name).read_bytes())
    content[-1] ^= 1  # of the last layer
    path.chmod(0o600)
    path.write_bytes(content)
    table = table_of(64)
    skipped, first_row = [2, 0, 0], [HIT, HIT + 5, HIT + 6]
    spans = [LoadedSpan(*span) for span in zip(files, DELTAS, skipped, first_row, strict=True)]
    slots = torch.arange(HIT + sum(LENGTHS) - 2) + 10
    slots[: HIT + 2] = -1  # the hit, and two tokens of the first span
    hit = torch.randn(2, HIT, HEADS, DIM).to(dtype)
    pages = PlainPages(dtype)
    loading = HostLoading(
        threads(num_threads),
        cast(HostPages, pages),
        [table, table, None, table, table],
        spans,
        {0: slots},
        hit=HIT,
        read_hit=lambda layer: (hit[0] + layer, hit[1] + layer),
        for_probe=for_probe,
    )
    for layer in range(LAYERS):
        loading.ready(layer)
        moved = [
            (kv[layer, 0] if layer == 2 else rerotate(kv[layer, 0], table, delta=delta), kv[layer, 1])
            for kv, delta in zip(stored, DELTAS, strict=True)
        ]
        sound = moved if layer < LAYERS - 1 else moved[:2]
        keys, values = (
            torch.cat([own[place][start:] for own, start in zip(sound, skipped, strict=False)]) for place in (0, 1)
        )
        written = slice(HIT + 10 + 2, HIT + 10 + len(keys))
        assert torch.equal(pages.kv[layer, :, written], torch.stack((keys[2:], values[2:])))
        assert bool(pages.kv[layer, :, : HIT + 12].isnan().all())
        if for_probe:
            rows = loading.rows(layer)
            assert torch.equal(rows.keys[: HIT + len(keys)], torch.cat((hit[0] + layer, keys)))
            assert torch.equal(rows.values[: HIT + len(keys)], torch.cat((hit[1] + layer, values)))
            norms = rows.values[: HIT + len(keys)].float().norm(dim=-1)
            torch.testing.assert_close(rows.norms[: HIT + len(keys)], norms, rtol=1e-5, atol=1e-6)
    assert list(loading.failed) == [2] and "fails its checksum" in str(loading.failed[2])
    loading.close()
    for file in files:
        file.close()


@pytest.mark.parametrize("num_threads", [0, 2])
def test_closed_early(tmp_path: Path, num_threads: int) -> None:
    """Nothing is written behind the end of `close`, and closing again does nothing."""
    store = TieredStore([DiskTier(tmp_path, budget_bytes=1 << 24)])
    file = put(store, 0, torch.randn(LAYERS, 2, 7, HEADS, DIM))
    pages = PlainPages(torch.float32)
    loading = HostLoading(
        threads(num_threads),
        cast(HostPages, pages),
        [None] * LAYERS,
        [LoadedSpan(file, 0, 0, 0)],
        {0: torch.arange(7)},
        hit=0,
        read_hit=nothing,
        for_probe=True,
    )
    loading.ready(0)
    loading.close()
    before = pages.kv.clone()
    loading.close()
    file.close()
    assert torch.equal(pages.kv.nan_to_num(), before.nan_to_num())
    assert bool(pages.kv[-1].isnan().all())


def test_what_breaks_it_off(tmp_path: Path) -> None:
    """An error that is no file's reaches whoever waits for the layer."""
    store = TieredStore([DiskTier(tmp_path, budget_bytes=1 << 24)])
    file = put(store, 0, torch.randn(LAYERS, 2, 7, HEADS, DIM))
    pages = PlainPages(torch.float32)
    far = table_of(4)
    for count in (0, 1):
        loading = HostLoading(
            threads(count),
            cast(HostPages, pages),
            [far] * LAYERS,
            [LoadedSpan(file, 9, 0, 0)],
            {0: torch.arange(7)},
            hit=0,
            read_hit=nothing,
            for_probe=False,
        )
        with pytest.raises(IndexError):
            loading.ready(0)
        loading.close()
    file.close()


def put(store: TieredStore, number: int, kv: Tensor) -> OpenPassageKV:
    key = PassageKVKey("model", token_hash([1]), token_hash([number]), 0, HEADS)
    store.put(key, kv, capture_position=0)
    file = store.open(key)
    assert file is not None
    return file


def table_of(num_positions: int) -> RotaryTable:
    angles = torch.arange(num_positions)[:, None] * 100.0 ** (-torch.arange(0, DIM, 2) / DIM)
    return RotaryTable(angles.cos(), angles.sin(), interleaved=False)


def nothing(layer: int) -> Any:
    raise AssertionError("there is no local hit")
