"""The store with a GPU tier in front, its arena in CPU memory: copies of what the shared tiers hold, and no more."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kvblend.core.errors import InvalidRequestError
from kvblend.core.settings import Settings
from kvblend.store import Stager, TieredStore
from tests.store.gpu.staged_layers import stage
from tests.store.samples import EXTENT_BYTES, FILE_BYTES, SHAPE, make_kv
from tests.store.store_samples import delete, demote, opened, pin, put, where

PAYLOAD_BYTES = SHAPE[0] * EXTENT_BYTES


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Room for two passages in the GPU and CPU tiers and three in the disk tier."""
    return Settings(
        codec="raw",
        gpu_bytes=2 * PAYLOAD_BYTES,
        cpu_path=tmp_path / "cpu",
        cpu_bytes=2 * FILE_BYTES,
        disk_path=tmp_path / "disk",
        disk_bytes=3 * FILE_BYTES,
        eviction="lru",
    )


@pytest.fixture
def store(settings: Settings) -> Iterator[TieredStore]:
    with TieredStore.from_settings(settings, "cpu") as store:
        yield store
        store.check_integrity()


def load(store: TieredStore, *numbers: int) -> int:
    """As a worker does: open, stage, use. Returns how many came to the GPU tier."""
    files = [file for file in [opened(store, number) for number in numbers] if file is not None]
    came = [file.header.key for file in files if file.tier != "gpu"]
    with Stager("cpu", gpu=store.gpu) as stager:
        assert stage(stager, files).failed == {}
    return sum(tier == "gpu" for tier in store.lookup_many(came).values())


def opened_from(store: TieredStore, number: int) -> str | None:
    file = opened(store, number)
    if file is None:
        return None
    with file:
        staged = file.staged()
        if staged is not None:
            assert torch.equal(staged.payload, make_kv(number))
        return file.tier


def test_only_a_worker_has_a_gpu_tier(settings: Settings) -> None:
    with TieredStore.from_settings(settings) as service:
        assert [tier.name for tier in service.stats()] == ["cpu", "disk"]
        put(service, 1)
        assert load(service, 1) == 0
    with TieredStore.from_settings(settings.model_copy(update={"gpu_bytes": 0}), "cpu") as worker:
        assert [tier.name for tier in worker.stats()] == ["cpu", "disk"]


def test_more_than_the_device_has_is_refused(settings: Settings) -> None:
    with pytest.raises(InvalidRequestError, match=rf"{1 << 60} bytes for KVBLEND_GPU_BYTES cannot be had on cpu"):
        TieredStore.from_settings(settings.model_copy(update={"gpu_bytes": 1 << 60}), "cpu")


def test_what_was_loaded_is_found_on_the_device(store: TieredStore) -> None:
    assert put(store, 1, 2) == ["disk", "disk"]  # what others must see too
    assert load(store, 1, 2) == 2
    assert where(store, 1, 2) == ["gpu", "gpu"]
    assert [opened_from(store, number) for number in (1, 2)] == ["gpu", "gpu"]
    assert load(store, 1, 2) == 0
    assert [tier.num_files for tier in store.stats()] == [2, 2, 2]


def test_a_passage_that_another_process_deletes_is_a_miss(store: TieredStore, settings: Settings) -> None:
    put(store, 1, 2)
    load(store, 1, 2)
    with TieredStore.from_settings(settings) as service:
        assert delete(service, 1) == 2
    assert where(store, 1, 2) == [None, "gpu"]
    assert store.stats()[0].num_files == 2
    assert opened_from(store, 1) is None
    assert store.stats()[0].num_files == 1
    assert not demote(store, 1)


def test_a_deleted_passage_does_not_come_back_by_eviction(store: TieredStore, settings: Settings) -> None:
    put(store, 1, 2)
    load(store, 1, 2)
    with TieredStore.from_settings(settings) as service:
        delete(service, 1)
    assert store.evict("gpu", 1) == PAYLOAD_BYTES
    assert where(store, 1, 2) == [None, "gpu"]
    assert [tier.num_files for tier in store.stats()] == [1, 1, 1]


def test_a_hit_on_the_device_keeps_the_shared_file_in_use(store: TieredStore) -> None:
    put(store, 1, 2)
    load(store, 1)
    assert opened_from(store, 1) == "gpu"
    put(store, 3)
    assert where(store, 1, 2, 3) == ["gpu", "disk", "cpu"]
    assert demote(store, 1)
    assert where(store, 1) == ["disk"]


def test_delete_reaches_the_device_too(store: TieredStore) -> None:
    put(store, 1)
    load(store, 1)
    assert delete(store, 1) == 2  # files; a copy on the device is none
    assert where(store, 1) == [None]
    assert store.stats()[0].used_bytes == 0


def test_what_does_not_fit_is_loaded_all_the_same(store: TieredStore) -> None:
    put(store, 1, 2, 3)
    load(store, 1, 2)
    held = [opened(store, number) for number in (1, 2)]
    assert load(store, 3) == 0
    assert where(store, 1, 2, 3) == ["gpu", "gpu", "cpu"]
    for file in held:
        assert file is not None
        file.close()
    assert load(store, 3) == 1
    assert where(store, 1, 2, 3) == ["disk", "gpu", "gpu"]


def test_a_pin_is_on_what_all_share(store: TieredStore) -> None:
    put(store, 1)
    load(store, 1)
    assert pin(store, 1) == 2
    assert [tier.num_pinned for tier in store.stats()] == [0, 1, 1]
