"""A store on a file system that is full, or can only be read: run where it may mount one of its own.

    unshare --user --map-root-user --mount python -m tests.store.folder.bad_disk CASE FOLDER

FOLDER is an empty one. The exit status is 0 where all is well.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from kvblend.core.errors import InvalidRequestError, StoreFullError
from kvblend.store import CPUTier, DiskTier, StoredPassageKV, TieredStore
from tests.store.samples import FILE_BYTES, make_key, make_kv

BUDGET = 64 << 20
"""Of every tier: more than its file system has."""


def mounted(folder: Path, num_bytes: int) -> Path:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)], check=True)
    return folder


def put(store: TieredStore, number: int) -> str:
    return store.put(make_key(number), make_kv(number), capture_position=1)


def check(store: TieredStore, numbers: list[int]) -> None:
    """These are there, each whole; and no others."""
    assert {entry.key for tier in store.bounded for entry in tier.all_entries()} == {make_key(own) for own in numbers}
    for number, (key, file) in zip(numbers, store.open_many([make_key(own) for own in numbers]).items(), strict=True):
        with file:
            assert isinstance(file, StoredPassageKV) and key == make_key(number)
            assert torch.equal(file.read(), make_kv(number))


def fill(store: TieredStore) -> list[int]:
    """Put until there is no room; nothing of the last one is left."""
    for number in range(1000):
        try:
            put(store, number)
        except StoreFullError as error:
            assert number > 5 and str(store.bounded[-1].location) in error.message, error.message
            return list(range(number))
    raise AssertionError("it never was full")


def disk_full(folder: Path) -> None:
    """What was put stays and is read; a delete makes room; after a restart all is as it was."""
    root = mounted(folder / "disk", 100 * FILE_BYTES)
    with TieredStore([DiskTier(root, budget_bytes=BUDGET)]) as store:
        there = fill(store)
        check(store, there)
        assert store.delete([make_key(number).variant for number in there[:20]]) == 20
        put(store, 2000)
        there = [*there[20:], 2000]
        check(store, there)
    assert not list(root.rglob("*.tmp")), "what could not be written lies about"
    with TieredStore([DiskTier(root, budget_bytes=BUDGET)]) as store:
        check(store, there)
        assert store.verify().quarantined == ()
        store.check_integrity()


def tmpfs_full(folder: Path) -> None:
    """Every put lasts on disk, with or without a copy in memory, and is read from there."""
    root = mounted(folder / "cpu", 40 * FILE_BYTES)
    (folder / "disk").mkdir()
    tiers = [CPUTier(root, budget_bytes=BUDGET), DiskTier(folder / "disk", budget_bytes=BUDGET)]
    with TieredStore(tiers) as store:
        assert {put(store, number) for number in range(80)} == {"disk"}
        check(store, list(range(80)))
        found = set(store.lookup_many([make_key(number) for number in range(80)]).values())
        assert found == {"cpu", "disk"}, found
        assert store.verify().quarantined == ()


def read_only(_folder: Path) -> None:
    """Reads go on, a corrupt file is a miss; puts, pins and deletes fail and say why; and none of it is left half."""
    with TemporaryDirectory() as name:
        root = Path(name) / "disk"
        Path(name).chmod(0o777)  # who must not write is nobody where this is root
        with nobody(), TieredStore([DiskTier(root, budget_bytes=BUDGET)]) as store:
            for number in range(5):
                put(store, number)
            path = root / make_key(4).file_name
            path.write_bytes(b"x" * path.stat().st_size)
            with without_writing(root):
                for _ in range(2):
                    opened = store.open_many([make_key(number) for number in range(5)])
                    assert set(opened) == {make_key(number) for number in range(4)}
                    for file in opened.values():
                        with file:
                            assert isinstance(file, StoredPassageKV)
                            assert any(torch.equal(file.read(), make_kv(own)) for own in range(4))
                refused(lambda: put(store, 9), StoreFullError)
                refused(lambda: store.delete([make_key(0).variant]), OSError)
                refused(lambda: store.pin([make_key(0).variant]), OSError)
                assert store.lookup_many([make_key(0)])
            put(store, 9)
            assert store.delete([make_key(0).variant]) == 1
            assert set(store.open_many([make_key(4)])) == set()
            check(store, [1, 2, 3, 9])
            store.check_integrity()
        with nobody(), without_writing(root):
            refused(lambda: DiskTier(root / "new", budget_bytes=BUDGET), InvalidRequestError)


@contextmanager
def nobody() -> Iterator[None]:
    """As a user whom permissions bind."""
    own = os.geteuid()
    if own == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(own)


@contextmanager
def without_writing(root: Path) -> Iterator[None]:
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        yield
    finally:
        for folder in folders:
            folder.chmod(0o770)


def refused(work: Callable[[], object], error: type[Exception]) -> None:
    try:
        work()
    except error as raised:
        assert str(raised)
    else:
        raise AssertionError(f"no {error.__name__}")


if __name__ == "__main__":
    {"disk_full": disk_full, "tmpfs_full": tmpfs_full, "read_only": read_only}[sys.argv[1]](Path(sys.argv[2]))
