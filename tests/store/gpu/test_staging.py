"""Staging: layers come in order, checked, by way of the ring or straight; what is corrupt fails its passage alone."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kvblend.core.errors import CorruptPassageKVError, InvalidRequestError
from kvblend.store import CPUTier, DiskTier, GPUTier, OpenPassageKV, Stager, TieredStore
from kvblend.store.content import TensorContent
from kvblend.store.gpu import landing
from tests.store.samples import EXTENT_BYTES, FILE_BYTES, SHAPE, make_key, make_kv
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


class Watched(OpenPassageKV):
    """An open passage KV that notes what is read of it, and waits before a layer until that is let through."""

    def __init__(self, file: OpenPassageKV, place: int, reads: list[tuple[int, int]]) -> None:
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

    def close(self) -> None:
        self.is_closed = True
        self._file.close()


def damage(tier: CPUTier, number: int, *, layer: int) -> None:
    path = tier.root / make_key(number).file_name
    damaged = bytearray(path.read_bytes())
    damaged[(1 + layer) * EXTENT_BYTES + 11] ^= 4
    path.write_bytes(damaged)


def test_every_layer_is_there_when_it_is_ready(tier: CPUTier, stager: Stager) -> None:
    for number in range(5):
        put(tier, number)
    for _ in range(3):  # the ring's memory is used again
        with stager.stage([opened(tier, number) for number in range(5)]) as staging:
            assert staging.num_layers == NUM_LAYERS
            for layer in range(NUM_LAYERS):
                assert staging.ready(layer) == frozenset()
                for number, passage in enumerate(staging.passages):
                    assert torch.equal(passage.payload[layer], make_kv(number)[layer])
            for passage in staging.passages:
                passage.check(SHAPE[3], SHAPE[4], torch.device("cpu"))


@pytest.mark.parametrize("num_fit", [0, 1])
def test_a_disk_tiers_passages_too(tmp_path: Path, host_bytes: int | None, num_fit: int) -> None:
    """Read past the page cache, where the file system allows it, to the window or the arena."""
    tier = DiskTier(tmp_path, budget_bytes=8 * FILE_BYTES)
    gpu = GPUTier("cpu", budget_bytes=num_fit * FILE_BYTES)
    put(tier, 1)
    with Stager("cpu", gpu=gpu, host_bytes=host_bytes) as stager, stager.stage([opened(tier, 1)]) as staging:
        assert staging.wait() == frozenset()
        assert torch.equal(staging.passages[0].payload, make_kv(1))
        assert staging.keep() == num_fit
    tier.close()


def test_layers_are_read_in_order_of_all_passages(tier: CPUTier) -> None:
    reads: list[tuple[int, int]] = []
    for number in range(3):
        put(tier, number)
    with Stager("cpu", num_threads=1) as stager:
        files = [Watched(opened(tier, number), number, reads) for number in range(3)]
        with stager.stage(files) as staging:
            staging.wait()
    assert reads == [(layer, place) for layer in range(NUM_LAYERS) for place in range(3)]
    assert not any(file.is_closed for file in files), "they are the caller's"


def test_a_layer_is_ready_while_the_next_is_read(tier: CPUTier, stager: Stager) -> None:
    put(tier, 1)
    file = Watched(opened(tier, 1), 0, [])
    file.gates[1] = threading.Event()
    with stager.stage([file]) as staging:
        assert staging.ready(0) == frozenset()
        assert torch.equal(staging.passages[0].payload[0], make_kv(1)[0])
        file.gates[1].set()
        assert staging.ready(2) == frozenset()


@pytest.mark.parametrize("num_fit", [0, 2, 8])
def test_a_corrupt_layer_fails_its_passage_alone(tier: CPUTier, host_bytes: int | None, num_fit: int) -> None:
    """Of four passages none, some or all have room in the GPU tier."""
    for number in range(4):
        put(tier, number)
    damage(tier, 1, layer=1)
    gpu = GPUTier("cpu", budget_bytes=num_fit * NUM_LAYERS * EXTENT_BYTES)
    store = TieredStore([tier], gpu=gpu)
    files = [opened(tier, number) for number in range(4)]
    with Stager("cpu", gpu=gpu, host_bytes=host_bytes) as stager, stager.stage(files) as staging:
        for layer in range(NUM_LAYERS):
            failed = staging.ready(layer)
            assert failed == {1} if layer > 0 else failed <= {1}
            for number in (0, 2, 3):
                assert torch.equal(staging.passages[number].payload[layer], make_kv(number)[layer])
        assert isinstance(staging.failed[1], CorruptPassageKVError)
        assert "layer 1" in staging.failed[1].message
        store.quarantine(staging.files[1])
        kept = [number for number in range(min(num_fit, 4)) if number != 1]
        assert staging.keep() == len(kept)
    assert [store.lookup(make_key(number)) for number in (0, 2, 3)] == [
        "gpu" if n in kept else "cpu" for n in (0, 2, 3)
    ]
    assert store.lookup(make_key(1)) is None
    assert gpu.stats().used_bytes == len(kept) * NUM_LAYERS * EXTENT_BYTES
    gpu.check_integrity()


@pytest.mark.parametrize("num_rows", [2, 3, 7])
def test_a_window_holds_some_layers_at_a_time(tier: CPUTier, host_bytes: int | None, num_rows: int) -> None:
    """Seven layers in two rows, three or all: a layer is read only after the one in its row was used."""
    shape = (7, *SHAPE[1:])
    reads: list[tuple[int, int]] = []
    for number in range(3):
        tier.put(TensorContent(make_key(number), make_kv(number, shape=shape), capture_position=0))
    gpu = GPUTier("cpu", budget_bytes=7 * EXTENT_BYTES)
    files = [Watched(opened(tier, number), number, reads) for number in range(3)]
    window_bytes = num_rows * 2 * EXTENT_BYTES  # of two passages: the first lands in the arena
    with (
        Stager("cpu", gpu=gpu, host_bytes=host_bytes, window_bytes=window_bytes) as stager,
        stager.stage(files) as staging,
    ):
        assert [passage.num_layers for passage in staging.passages] == [7, num_rows, num_rows]
        for layer in range(7):
            assert staging.ready(layer) == frozenset()
            for number, passage in enumerate(staging.passages):
                row = passage.payload[layer % passage.num_layers]
                assert torch.equal(row, make_kv(number, shape=shape)[layer])
            assert max(read for read, _ in reads) <= layer + num_rows - 1
        if num_rows < 7:
            with pytest.raises(AssertionError, match="used up"):
                staging.ready(0)
        assert staging.keep() == 1
    assert sorted(reads) == [(layer, place) for layer in range(7) for place in range(3)]


def test_closing_does_not_wait_for_a_window_to_be_used(tier: CPUTier) -> None:
    shape = (7, *SHAPE[1:])
    reads: list[tuple[int, int]] = []
    tier.put(TensorContent(make_key(1), make_kv(1, shape=shape), capture_position=0))
    with Stager("cpu", window_bytes=1) as stager, stager.stage([Watched(opened(tier, 1), 0, reads)]) as staging:
        staging.ready(1)
    assert len(reads) <= 3


def test_a_file_that_shrank_fails_alone(tier: CPUTier, stager: Stager) -> None:
    put(tier, 0)
    put(tier, 1)
    files = [opened(tier, 0), opened(tier, 1)]
    os.truncate(tier.root / make_key(1).file_name, 2 * EXTENT_BYTES)
    with stager.stage(files) as staging:
        assert staging.wait() == {1}
        assert "ends at byte" in staging.failed[1].message


def test_after_its_failure_a_passage_is_read_no_more(tier: CPUTier) -> None:
    shape = (40, *SHAPE[1:])
    tier.put(TensorContent(make_key(1), make_kv(1, shape=shape), capture_position=0))
    damage(tier, 1, layer=0)
    reads: list[tuple[int, int]] = []
    with Stager("cpu", num_threads=1) as stager, stager.stage([Watched(opened(tier, 1), 0, reads)]) as staging:
        assert staging.wait() == {0}
    assert len(reads) < 10


def test_passages_of_the_gpu_tier_are_where_they_lie(tier: CPUTier, stager: Stager) -> None:
    gpu = GPUTier("cpu", budget_bytes=2 * FILE_BYTES)
    put(gpu, 0)
    put(tier, 1)
    resident = opened(gpu, 0)
    with stager.stage([resident, opened(tier, 1)]) as staging:
        staged = resident.staged()
        assert staged is not None
        assert staging.passages[0].payload.data_ptr() == staged.payload.data_ptr()
        assert not gpu.drop(make_key(0))  # it is open
        staging.wait()
        assert [torch.equal(staging.passages[n].payload, make_kv(n)) for n in (0, 1)] == [True, True]
    resident.close()
    assert gpu.drop(make_key(0))


def test_all_in_the_gpu_tier_is_ready_at_once(stager: Stager) -> None:
    gpu = GPUTier("cpu", budget_bytes=2 * FILE_BYTES)
    put(gpu, 0)
    with stager.stage([opened(gpu, 0)]) as staging:
        assert [staging.ready(layer) for layer in range(NUM_LAYERS)] == [frozenset()] * NUM_LAYERS
        assert staging.keep() == 0


def test_closing_midway_reads_no_more(tier: CPUTier, stager: Stager) -> None:
    shape = (40, *SHAPE[1:])
    tier.put(TensorContent(make_key(1), make_kv(1, shape=shape), capture_position=0))
    reads: list[tuple[int, int]] = []
    file = Watched(opened(tier, 1), 0, reads)
    file.gates[1] = threading.Event()
    staging = stager.stage([file])
    staging.ready(0)
    closer = threading.Thread(target=staging.close)
    closer.start()
    while not staging.progress.is_closed:
        closer.join(timeout=0.001)
    file.gates[1].set()
    closer.join()
    assert len(reads) < 20
    staging.close()
    put(tier, 2)
    with stager.stage([opened(tier, 2)]) as again:  # the stager goes on
        again.wait()
        assert torch.equal(again.passages[0].payload, make_kv(2))


def test_what_is_no_passages_fault_is_raised_where_a_layer_is_waited_for(tier: CPUTier, stager: Stager) -> None:
    class Broken(Watched):
        def read_extent(self, layer: int, extent: memoryview) -> None:
            if layer == 1:
                raise RuntimeError("the device is gone")
            super().read_extent(layer, extent)

    put(tier, 1)
    with stager.stage([Broken(opened(tier, 1), 0, [])]) as staging:
        assert staging.ready(0) == frozenset()
        for _ in range(2):
            with pytest.raises(RuntimeError, match="the device is gone"):
                staging.ready(2)
    with stager.stage([opened(tier, 1)]) as again:
        assert again.wait() == frozenset()


def test_passages_may_differ_in_tokens_and_not_in_layers(tier: CPUTier, stager: Stager) -> None:
    shapes = [(6, 2, 5, 2, 8), (6, 2, 33, 2, 64), (6, 2, 500, 2, 8), (7, 2, 5, 2, 8)]
    for number, shape in enumerate(shapes):
        tier.put(TensorContent(make_key(number), make_kv(number, shape=shape), capture_position=0))
    files = [opened(tier, number) for number in range(4)]
    with pytest.raises(InvalidRequestError, match="6 and of 7 layers"):
        stager.stage(files)
    with stager.stage(files[:3]) as staging:
        assert staging.wait() == frozenset()
        for number, shape in enumerate(shapes[:3]):
            assert torch.equal(staging.passages[number].payload, make_kv(number, shape=shape))
        with pytest.raises(IndexError, match="layer 6 of 6"):
            staging.ready(6)
    files[3].close()


def test_nothing_to_stage(stager: Stager) -> None:
    with stager.stage([]) as staging:
        assert (staging.num_layers, staging.passages, staging.wait()) == (0, (), frozenset())


def test_two_stagings_come_one_after_the_other(tier: CPUTier, stager: Stager) -> None:
    put(tier, 1)
    put(tier, 2)
    with stager.stage([opened(tier, 1)]) as first, stager.stage([opened(tier, 2)]) as second:
        assert second.wait() == first.wait() == frozenset()
        assert torch.equal(first.passages[0].payload, make_kv(1))
        assert torch.equal(second.passages[0].payload, make_kv(2))


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
        with (
            Stager("cpu", gpu=gpu, window_bytes=1, host_bytes=host_bytes, num_threads=2) as stager,
            stager.stage([opened(tier, number) for number in range(2)]) as staging,
        ):
            for layer in range(NUM_LAYERS):
                assert staging.ready(layer) == frozenset()
                for number, passage in enumerate(staging.passages):
                    assert torch.equal(passage.payload[layer % passage.num_layers], make_kv(number)[layer])
            assert staging.keep() == min(2, num_fit)
    if num_fit == 4:
        put(gpu, 2)
        with opened(gpu, 2) as resident:
            assert torch.equal(resident.read(), make_kv(2))
