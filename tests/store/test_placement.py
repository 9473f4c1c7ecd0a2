"""Which tiers a store gets from its settings, and what an operator is told about mistakes."""

import logging
import os
from pathlib import Path

import pytest

from kvblend.core.errors import InvalidRequestError, StoreFullError
from kvblend.core.settings import Settings
from kvblend.store import TieredStore
from tests.store.samples import make_key, make_kv


def make_settings(folder: Path, *, cpu_bytes: int = 1 << 20, disk_bytes: int = 1 << 20) -> Settings:
    return Settings(
        codec="raw",
        home=folder,
        cpu_path=folder / "cpu",
        cpu_bytes=cpu_bytes,
        disk_path=folder / "disk",
        disk_bytes=disk_bytes,
    )


@pytest.mark.parametrize(
    ("cpu_bytes", "disk_bytes", "names"), [(1 << 20, 1 << 20, ["cpu", "disk"]), (0, 1, ["disk"]), (1, 0, ["cpu"])]
)
def test_a_budget_of_0_switches_a_tier_off(tmp_path: Path, cpu_bytes: int, disk_bytes: int, names: list[str]) -> None:
    with TieredStore.from_settings(make_settings(tmp_path, cpu_bytes=cpu_bytes, disk_bytes=disk_bytes)) as store:
        assert [tier.name for tier in store.stats()] == names
        assert [tier.budget_bytes for tier in store.stats()] == [size for size in (cpu_bytes, disk_bytes) if size]


def test_no_tier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="KVBLEND_CPU_BYTES and KVBLEND_DISK_BYTES are both 0"):
        TieredStore.from_settings(make_settings(tmp_path, cpu_bytes=0, disk_bytes=0))


@pytest.mark.parametrize("name", ["cpu_path", "disk_path"])
def test_a_relative_path_is_refused(tmp_path: Path, name: str) -> None:
    settings = make_settings(tmp_path).model_copy(update={name: Path("some/where")})
    with pytest.raises(InvalidRequestError, match=rf"KVBLEND_{name.upper()} is 'some/where', a relative path"):
        TieredStore.from_settings(settings)


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "disk").write_text("in the way")
    with pytest.raises(InvalidRequestError, match=r"disk' cannot be written"):
        TieredStore.from_settings(make_settings(tmp_path))


@pytest.mark.parametrize("inner", ["", "deep/inside"])
def test_tiers_within_each_other_are_refused(tmp_path: Path, inner: str) -> None:
    settings = make_settings(tmp_path).model_copy(update={"disk_path": tmp_path / "cpu" / inner})
    with pytest.raises(InvalidRequestError, match="lie within each other"):
        TieredStore.from_settings(settings)


def test_a_budget_below_one_passage_is_named(tmp_path: Path) -> None:
    message = r"16384 bytes of one passage KV are over the disk tier's 8192"
    settings = make_settings(tmp_path, cpu_bytes=4096, disk_bytes=8192)
    with TieredStore.from_settings(settings) as store, pytest.raises(StoreFullError, match=message):
        store.put(make_key(1), make_kv(1), capture_position=0)


def room(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def test_the_budget_is_bounded_by_the_room_there_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if room(tmp_path) < 256 << 20:
        pytest.skip("needs 256 MiB of room")
    with TieredStore.from_settings(make_settings(tmp_path, cpu_bytes=1 << 60)) as store:
        assert store.stats()[0].budget_bytes <= room(tmp_path) + (1 << 30)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "budget is" in caplog.text


@pytest.mark.parametrize("disk_bytes", [0, 1 << 20])
def test_a_small_file_system_switches_the_cpu_tier_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, disk_bytes: int
) -> None:
    """/proc is a file system with no room at all, on every Linux machine."""
    settings = make_settings(tmp_path, disk_bytes=disk_bytes).model_copy(update={"cpu_path": Path("/proc/kvblend")})
    if disk_bytes:
        with TieredStore.from_settings(settings) as store:
            assert [tier.name for tier in store.stats()] == ["disk"]
        assert "the CPU tier is off" in caplog.text
        assert "--shm-size" in caplog.text
    else:
        with pytest.raises(InvalidRequestError, match="no room for a CPU tier and KVBLEND_DISK_BYTES is 0"):
            TieredStore.from_settings(settings)


def test_what_the_store_holds_already_counts_as_room(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, cpu_bytes=1 << 60)
    with TieredStore.from_settings(settings) as store:
        store.put(make_key(1), make_kv(1), capture_position=0)
    with TieredStore.from_settings(settings) as again:
        assert again.lookup_many([make_key(1)]) == {make_key(1): "cpu"}
        assert again.stats()[0].budget_bytes <= room(tmp_path) + (1 << 30)
