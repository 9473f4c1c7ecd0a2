"""Staging: layers come in order, checked, by way of the ring or straight; what is corrupt fails its passage alone."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from kvblend.core.errors import InvalidRequestError
from kvblend.store import CPUTier, DiskTier, GPUTier, Stager, StoredPassageKV, TieredStore
from kvblend.store.content import TensorContent
from kvblend.store.gpu import landing
from tests.store.gpu import arena_samples
from tests.store.gpu.staged_layers import stage
from tests.store.samples import EXTENT_BYTES, FILE_BYTES, SHAPE, make_key, make_kv
from tests.store.store_samples import where
from tests.store.tier_contract import opened, put

NUM_LAYERS = SHAPE[0]


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[CPUTier]:
    tier = CPUTier(tmp_path / "cpu", budget_bytes=64 * FILE_BYTES)
    yield tier
    tier.close()


@pytest.fixture(params=[None, 3 * EXTENT_BYTES, 1 << 20], ids=["straight", "small ring", "ring"])
def host_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """Reads go straight to where they stay, or by way of three extents, or of many; a part has two small extents."""
    monkeypatch.setattr(landing, "PART_BYTES", 2 * EXTENT_BYTES)
    num_bytes: int | None = request.param
    return num_bytes


@pytest.fixture
def stager(host_bytes: int | None) -> Iterator[Stager]:
    with Stager("cpu", host_bytes=host_bytes) as stager:
        yield stager


class Watched(StoredPassageKV):
    """An open passage KV that notes what is read of it, and waits before a layer until that is let through."""

    def __init__(self, file: StoredPassageKV, place: int, reads: list[tuple[int, int]]) -> None:
        self.header, self.tier = file.header, file.tier
        self.gates: dict[int, threading.Event] = {}
        self.is_closed = False
        self._file, self._place, self._reads = file, place, reads

    @property
    def num_bytes(self) -> int:
        return self._file.num_bytes

    def read_extent(self, layer: int, extent: memoryview) -> None:
        if layer in self.gates:
            assert self.gates[layer].wait(timeout=30)
        self._reads.append((layer, self._place))
        self._file.read_extent(layer, extent)

    def quarantine(self) -> bool:
        return self._file.quarantine()

    def close(self) -> None:
        self.is_closed = True
        self._file.close()


def damage(tier: CPUTier, number: int, *, layer: int) -> None:
    path = tier.root / make_key(number).file_name
    damaged = bytearray(path.read_bytes())
    damaged[(1 + layer) * EXTENT_BYTES + 11] ^= 4
    path.write_bytes(damaged)


def test_every_layer_is_there_when_it_is_used(tier: CPUTier, stager: Stager) -> None:
    for number in range(5):
        put(tier, number)
    for _ in range(3):  # the ring's memory is used again
        staged = stage(stager, [opened(tier, number) for number in range(5)])
        assert staged.failed == {} and len(staged.layers) == NUM_LAYERS
        assert all(torch.equal(staged.kv(number), make_kv(number)) for number in range(5))
        for passage in staged.passages:
            passage.check(SHAPE[3], SHAPE[4], torch.device("cpu"))


@pytest.mark.parametrize("num_fit", [0, 1])
def test_a_disk_tiers_passages_too(tmp_path: Path, host_bytes: int | None, num_fit: int) -> None:
    """Read past the page cache, where the file system allows it, to the window or the arena."""
    tier = DiskTier(tmp_path, budget_bytes=8 * FILE_BYTES)
    gpu = GPUTier("cpu", budget_bytes=num_fit * FILE_BYTES)
    put(tier, 1)
    with Stager("cpu", gpu=gpu, host_bytes=host_bytes) as stager:
        assert torch.equal(stage(stager, [opened(tier, 1)]).kv(0), make_kv(1))
    assert gpu.stats().num_files == num_fit
    tier.close()


def test_layers_are_read_in_order_of_all_passages(tier: CPUTier) -> None:
    reads: list[tuple[int, int]] = []
    for number in range(3):
        put(tier, number)
    with Stager("cpu", num_threads=1) as stager:
        files = [Watched(opened(tier, number), number, reads) for number in range(3)]
        stager.stage(files, lambda passages: lambda layer: None)
    assert reads == [(layer, place) for layer in range(NUM_LAYERS) for place in range(3)]
    assert not any(file.is_closed for file in files), "they are the caller's"


def test_a_layer_is_used_while_the_next_is_read(tier: CPUTier, stager: Stager) -> None:
    put(tier, 1)
    file = Watched(opened(tier, 1), 0, [])
    file.gates[1] = threading.Event()

    def use(layer: int) -> None:
        if layer == 0:
            file.gates[1].set()

    assert torch.equal(stage(stager, [file], use=use).kv(0), make_kv(1))


@pytest.mark.parametrize("num_fit", [0, 2, 8])
def test_a_corrupt_layer_fails_its_passage_alone(tier: CPUTier, host_bytes: int | None, num_fit: int) -> None:
    """Of four passages none, some or all have room in the GPU tier."""
    for number in range(4):
        put(tier, number)
    damage(tier, 1, layer=1)
    gpu = GPUTier("cpu", budget_bytes=num_fit * NUM_LAYERS * EXTENT_BYTES)
    store = TieredStore([tier], gpu=gpu)
    files = [opened(tier, number) for number in range(4)]
    with Stager("cpu", gpu=gpu, host_bytes=host_bytes) as stager:
        staged = stage(stager, files)
    assert list(staged.failed) == [1] and "layer 1" in staged.failed[1].message
    assert all(torch.equal(staged.kv(number), make_kv(number)) for number in (0, 2, 3))
    kept = [number for number in range(min(num_fit, 4)) if number != 1]
    assert where(store, 0, 1, 2, 3) == ["gpu" if n in kept else "cpu" for n in range(4)]
    assert gpu.stats().used_bytes == len(kept) * NUM_LAYERS * EXTENT_BYTES
    gpu.check_integrity()


@pytest.mark.parametrize("num_rows", [2, 3, 7])
def test_a_window_holds_some_layers_at_a_time(tier: CPUTier, host_bytes: int | None, num_rows: int) -> None:
    """Seven layers in two rows, three or all: a layer is copied only after the one in its row was used."""
    shape = (7, *SHAPE[1:])
    reads: list[tuple[int, int]] = []
    for number in range(3):
        tier.put(TensorContent(make_key(number), make_kv(number, shape=shape), capture_position=0))
    gpu = GPUTier("cpu", budget_bytes=7 * EXTENT_BYTES)
    files = [Watched(opened(tier, number), number, reads) for number in range(3)]
    window_bytes = num_rows * 2 * EXTENT_BYTES  # of two passages: the first lands in the arena

    def use(layer: int) -> None:
        if host_bytes is None:  # straight to the row
            assert max(read for read, _ in reads) <= layer + num_rows - 1

    with Stager("cpu", gpu=gpu, host_bytes=host_bytes, window_bytes=window_bytes) as stager:
        staged = stage(stager, files, use=use)
    assert [passage.num_layers for passage in staged.passages] == [7, num_rows, num_rows]
    assert all(torch.equal(staged.kv(number), make_kv(number, shape=shape)) for number in range(3))
    assert gpu.stats().num_files == 1
    assert sorted(reads) == [(layer, place) for layer in range(7) for place in range(3)]


def test_a_file_that_shrank_fails_alone(tier: CPUTier, stager: Stager) -> None:
    put(tier, 0)
    put(tier, 1)
    files = [opened(tier, 0), opened(tier, 1)]
    os.truncate(tier.root / make_key(1).file_name, 2 * EXTENT_BYTES)
    staged = stage(stager, files)
    assert list(staged.failed) == [1] and "ends at byte" in staged.failed[1].message


def test_after_its_failure_a_passage_is_read_no_more(tier: CPUTier) -> None:
    shape = (40, *SHAPE[1:])
    tier.put(TensorContent(make_key(1), make_kv(1, shape=shape), capture_position=0))
    damage(tier, 1, layer=0)
    reads: list[tuple[int, int]] = []
    with Stager("cpu", num_threads=1) as stager:
        assert list(stage(stager, [Watched(opened(tier, 1), 0, reads)]).failed) == [0]
    assert len(reads) < 10


def test_passages_of_the_gpu_tier_are_where_they_lie(tier: CPUTier, stager: Stager) -> None:
    gpu = GPUTier("cpu", budget_bytes=2 * FILE_BYTES)
    arena_samples.put(gpu, 0)
    put(tier, 1)
    with arena_samples.opened(gpu, 0) as resident:
        lies = resident.staged()
        staged = stage(stager, [arena_samples.opened(gpu, 0), opened(tier, 1)])
        assert staged.passages[0].payload.data_ptr() == lies.payload.data_ptr()
        assert [torch.equal(staged.kv(number), make_kv(number)) for number in (0, 1)] == [True, True]
    assert gpu.evict(1) > 0, "somebody has it open"


def test_what_uses_a_layer_may_fail(tier: CPUTier, stager: Stager) -> None:
    """It is raised where it is staged, nothing is kept, and the stager goes on."""
    shape = (40, *SHAPE[1:])
    tier.put(TensorContent(make_key(1), make_kv(1, shape=shape), capture_position=0))
    reads: list[tuple[int, int]] = []

    def use(layer: int) -> None:
        if layer == 2:
            raise RuntimeError("the device is gone")

    with pytest.raises(RuntimeError, match="the device is gone"):
        stage(stager, [Watched(opened(tier, 1), 0, reads)], use=use)
    assert len(reads) < 20
    put(tier, 2)
    assert torch.equal(stage(stager, [opened(tier, 2)]).kv(0), make_kv(2))


def test_what_is_no_passages_fault_is_raised(tier: CPUTier, host_bytes: int | None) -> None:
    class Broken(Watched):
        def read_extent(self, layer: int, extent: memoryview) -> None:
            if layer == 1:
                raise RuntimeError("the device is gone")
            super().read_extent(layer, extent)

    put(tier, 1)
    gpu = GPUTier("cpu", budget_bytes=FILE_BYTES)
    with Stager("cpu", gpu=gpu, host_bytes=host_bytes) as stager:
        with pytest.raises(RuntimeError, match="the device is gone"):
            stage(stager, [Broken(opened(tier, 1), 0, [])])
        assert gpu.stats().used_bytes == 0
        assert torch.equal(stage(stager, [opened(tier, 1)]).kv(0), make_kv(1))


def test_passages_may_differ_in_tokens_and_not_in_layers(tier: CPUTier, stager: Stager) -> None:
    shapes = [(6, 2, 5, 2, 8), (6, 2, 33, 2, 64), (6, 2, 500, 2, 8), (7, 2, 5, 2, 8)]
    for number, shape in enumerate(shapes):
        tier.put(TensorContent(make_key(number), make_kv(number, shape=shape), capture_position=0))
    with pytest.raises(InvalidRequestError, match="6 and of 7 layers"):
        stage(stager, [opened(tier, number) for number in range(4)])
    staged = stage(stager, [opened(tier, number) for number in range(3)])
    for number, shape in enumerate(shapes[:3]):
        assert torch.equal(staged.kv(number), make_kv(number, shape=shape))


def test_nothing_to_stage(stager: Stager) -> None:
    staged = stage(stager, [])
    assert (staged.failed, staged.passages, staged.layers) == ({}, (), [])


def test_stagings_of_several_threads_take_turns(tier: CPUTier, stager: Stager) -> None:
    for number in range(4):
        put(tier, number)
    with ThreadPoolExecutor(4) as threads:
        works = [threads.submit(stage, stager, [opened(tier, number)]) for number in range(4)]
    assert all(torch.equal(work.result().kv(0), make_kv(number)) for number, work in enumerate(works))


def test_another_kind_of_device_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="meta"):
        Stager("meta")


@pytest.mark.parametrize("num_fit", [0, 1, 4])
def test_made_and_used_under_inference_mode(tier: CPUTier, host_bytes: int | None, num_fit: int) -> None:
    """As in a vLLM worker, while the stager's threads and whoever puts are not."""
    for number in range(3):
        put(tier, number)
    with torch.inference_mode():
        gpu = GPUTier("cpu", budget_bytes=num_fit * FILE_BYTES)
        stager = Stager("cpu", gpu=gpu, window_bytes=1, host_bytes=host_bytes, num_threads=2)
    with stager, ThreadPoolExecutor(1) as thread:
        staged = thread.submit(stage, stager, [opened(tier, number) for number in range(2)]).result()
        assert all(torch.equal(staged.kv(number), make_kv(number)) for number in range(2))
    assert gpu.stats().num_files == min(2, num_fit)
    if num_fit == 4:
        arena_samples.put(gpu, 2)
        with arena_samples.opened(gpu, 2) as resident:
            assert torch.equal(resident.staged().payload, make_kv(2))
