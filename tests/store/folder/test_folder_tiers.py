"""The CPU and disk tiers: the contract of every tier, and what is particular to a folder."""

import logging
import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from kvblend.core.errors import CorruptPassageKVError, InvalidRequestError, StoreFullError
from kvblend.store import NEVER, BoundedTier, CPUTier, DiskTier, PassageKVKey, Tier
from kvblend.store.content import TensorContent
from kvblend.store.folder.folder_tier import FolderTier
from kvblend.store.folder.index import INDEX_NAME
from tests.store.bounded_tier_contract import BoundedTierContract, held, pin
from tests.store.samples import FILE_BYTES, make_key, make_kv
from tests.store.tier_contract import HalfWritten, contains, is_miss, keys, opened, put


class FolderTierContract(BoundedTierContract):
    def damage(self, tier: Tier, key: PassageKVKey, *, offset: int) -> None:
        path = Path(tier.location) / key.file_name
        status = path.stat()
        damaged = bytearray(path.read_bytes())
        damaged[offset] ^= 1
        path.write_bytes(damaged)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # damage is no use

    def test_files_outlive_the_tier(self, tier: BoundedTier, tmp_path: Path) -> None:
        """A tier made twice over one folder is one place."""
        put(tier, 1)
        again = self.make_tier(tmp_path / "tier", budget_bytes=tier.budget_bytes)
        with opened(again, 1) as file:
            assert torch.equal(file.read(), make_kv(1))
        assert again.stats().used_bytes == FILE_BYTES
        again.close()

    def test_a_file_whose_delete_was_cut_short_is_forgotten_by_the_next(self, tier: BoundedTier) -> None:
        """Killed when the file was gone and the index did not know yet."""
        for number in (1, 2):
            put(tier, number)
        (Path(tier.location) / make_key(1).file_name).unlink()
        assert tier.delete([make_key(1).variant], NEVER) == 0
        assert [entry.key for entry in tier.entries()] == [make_key(2)] and tier.stats().used_bytes == FILE_BYTES

    def test_a_full_file_system_is_a_full_store(self, tier: BoundedTier) -> None:
        with pytest.raises(StoreFullError, match="no room"):
            tier.put(HalfWritten(1, OSError(28, "No space left on device")), NEVER)
        assert tier.stats().used_bytes == 0


class TestCPUTier(FolderTierContract):
    @pytest.fixture
    def tmp_path(self) -> Iterator[Path]:
        """On tmpfs, where there is one."""
        with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
            yield Path(folder)

    def make_tier(self, folder: Path, *, budget_bytes: int) -> BoundedTier:
        return CPUTier(folder, budget_bytes=budget_bytes)


class TestDiskTier(FolderTierContract):
    def make_tier(self, folder: Path, *, budget_bytes: int) -> BoundedTier:
        return DiskTier(folder, budget_bytes=budget_bytes)


@pytest.fixture(params=[CPUTier, DiskTier])
def tier(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FolderTier]:
    tier: FolderTier = request.param(tmp_path / "tier", budget_bytes=4 * FILE_BYTES)
    yield tier
    tier.close()


def test_a_relative_path_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"'kv/cpu' is relative; it must be absolute"):
        CPUTier(Path("kv/cpu"), budget_bytes=1)


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InvalidRequestError, match=r"file/kv' cannot be written"):
        DiskTier(tmp_path / "file" / "kv", budget_bytes=1)
    with pytest.raises(InvalidRequestError, match="cannot be written"):
        DiskTier(Path("/proc/kvblend"), budget_bytes=1)


@pytest.mark.parametrize("kind", ["fifo", "folder", "link", "dangling link"])
def test_what_is_no_regular_file_is_a_miss(tier: FolderTier, tmp_path: Path, kind: str) -> None:
    path = tier.root / make_key(1).file_name
    put(tier, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tier.root / make_key(2).file_name)
    else:
        path.symlink_to(tmp_path / "nowhere")
    assert is_miss(tier, 1)
    assert not contains(tier, 1)
    assert held(tier) == keys(2)
    if kind != "folder":
        assert put(tier, 1)
        opened(tier, 1).close()
    assert tier.verify().quarantined == ()


def test_other_files_in_the_folder_are_left_alone(tier: FolderTier) -> None:
    mine = tier.root / "notes.txt"
    mine.write_text("not ours")
    put(tier, 1)
    assert tier.verify().num_files == 1
    assert mine.exists()


def test_files_of_another_format_are_misses_said_once_and_go_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = tmp_path / f"model-1/{make_key(1).encode_context}/ab/{make_key(1).passage_id}.h0-2.v1.kv"
    old.parent.mkdir(parents=True)
    old.write_bytes(bytes(FILE_BYTES))
    tier = DiskTier(tmp_path, budget_bytes=2 * FILE_BYTES)
    assert [record.message for record in caplog.records] == [
        f"1 files of another format at {tmp_path} are of no use and go first"
    ]
    assert (tier.stats().num_files, tier.stats().used_bytes) == (0, FILE_BYTES)
    put(tier, 1, 2)
    assert held(tier) == keys(1, 2) and not old.exists()
    tier.close()
    DiskTier(tmp_path, budget_bytes=2 * FILE_BYTES).close()
    assert len(caplog.records) == 1


def test_a_dead_writers_file_is_removed_and_a_live_ones_is_not(tier: FolderTier) -> None:
    folder = (tier.root / make_key(1).file_name).parent
    folder.mkdir(parents=True)
    dead = folder / ".a.1-0.tmp"
    dead.write_bytes(bytes(FILE_BYTES))
    seen = []

    class Slow(TensorContent):
        def write(self, fd: int) -> None:
            seen.append(tier.verify().num_temporary_removed)
            seen.append(tier.stats().used_bytes)
            super().write(fd)

    tier.put(Slow(make_key(1), make_kv(1), capture_position=0))
    assert seen == [1, FILE_BYTES]
    assert not dead.exists()
    with opened(tier, 1) as file:
        assert torch.equal(file.read(), make_kv(1))


@pytest.mark.parametrize("damage", [b"", b"no database", None])
def test_an_index_that_is_lost_is_made_anew(tmp_path: Path, damage: bytes | None) -> None:
    """What lies in the folder, its pins, owners, and the order of uses; and what had no row."""
    tier = DiskTier(tmp_path, budget_bytes=4 * FILE_BYTES)
    for number, owner in ((1, "news"), (2, "manuals"), (3, "news")):
        own = TensorContent(make_key(number), make_kv(number), capture_position=0, owners=[owner])
        tier.put(own, NEVER)
    pin(tier, 1)
    opened(tier, 2).close()
    before = tier.stats(), tier.owned_bytes()
    tier.close()
    for suffix in ("", "-wal", "-shm"):
        path = tmp_path / f"{INDEX_NAME}{suffix}"
        path.unlink(missing_ok=True)
        if damage is not None and not suffix:
            path.write_bytes(damage)
    tier = DiskTier(tmp_path, budget_bytes=4 * FILE_BYTES)
    assert (tier.stats(), tier.owned_bytes()) == before
    put(tier, 4, 5)  # 1 is pinned, 2 was used after 3
    assert held(tier) == keys(1, 2, 4, 5)
    tier.check_integrity()
    tier.close()


def test_a_file_that_its_writer_did_not_live_to_count_is_counted(tier: FolderTier) -> None:
    put(tier, 1, 2)
    with tier._space.change() as index:
        index.forget(make_key(1).file_name)
    assert tier.stats().num_files == 1
    opened(tier, 1).close()
    assert tier.stats().num_files == 2 and tier.stats().used_bytes == 2 * FILE_BYTES


def test_a_file_that_someone_removed_is_counted_until_it_is_missed(tier: FolderTier) -> None:
    put(tier, 1, 2)
    (tier.root / make_key(1).file_name).unlink()
    assert is_miss(tier, 1)
    put(tier, 3, 4, 5)
    assert held(tier) == keys(2, 3, 4, 5)


def test_a_folder_that_is_removed_is_made_again(tier: FolderTier) -> None:
    put(tier, 1)
    shutil.rmtree(tier.root)
    assert is_miss(tier, 1)
    assert not contains(tier, 1)
    assert tier.stats().used_bytes == 0
    put(tier, 2)
    tier.check_integrity()


def test_empty_folders_go_with_their_last_file(tier: FolderTier) -> None:
    put(tier, 1)
    tier.evict(FILE_BYTES)
    assert {entry.name.split("-")[0] for entry in tier.root.iterdir()} == {".users", INDEX_NAME}


def test_a_file_that_shrinks_while_it_is_open_raises_and_never_kills(tier: FolderTier) -> None:
    put(tier, 1)
    with opened(tier, 1) as file:
        os.truncate(tier.root / make_key(1).file_name, 4096)
        with pytest.raises(CorruptPassageKVError, match="ends at byte"):
            file.read()
        with pytest.raises(CorruptPassageKVError, match="ends at byte"):
            file.read(torch.empty(file.header.shape))


def test_a_thousand_flipped_bits_and_none_is_served(tier: FolderTier) -> None:
    """Each in a file of its own that is read whole: it is a miss, or its reader is told."""
    put(tier, 1)
    path = tier.root / make_key(1).file_name
    whole, chance = path.read_bytes(), random.Random(1)
    for _ in range(1000):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(damaged)
        file = tier.fetch_many([make_key(1)], NEVER).get(make_key(1))
        if file is not None:
            with file, pytest.raises(CorruptPassageKVError):
                file.read()


def test_a_clock_that_goes_back_changes_no_order(tier: FolderTier, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was used last stays, whatever time it was."""
    times = iter(range(10**18, 0, -(10**15)))
    monkeypatch.setattr(time, "time_ns", lambda: next(times))
    put(tier, 1, 2, 3, 4)
    opened(tier, 1).close()
    put(tier, 5)
    assert held(tier) == keys(1, 3, 4, 5)


def test_threads_share_one_tier(tier: FolderTier, caplog: pytest.LogCaptureFixture) -> None:
    """Eight threads put and read twelve passages where four fit: a hit is always whole and right."""
    caplog.set_level(logging.WARNING)
    errors: list[BaseException] = []

    def work(start: int) -> None:
        try:
            for step in range(40):
                number = (start + step * 5) % 12
                file = tier.fetch_many([make_key(number)], NEVER).get(make_key(number))
                if file is None:
                    put(tier, number)
                else:
                    with file:
                        assert torch.equal(file.read(), make_kv(number))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert caplog.records == []
    tier.check_integrity()
