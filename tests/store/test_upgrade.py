"""A store that services of several versions share, or one leaves to the next: a rolling upgrade, and the way back."""

import gzip
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvblend.store import CPUTier, DiskTier, TieredStore
from tests.store.samples import CONTEXT, FILE_BYTES, make_key, make_kv
from tests.store.store_samples import read

BUDGET = 1 << 24
OTHERS = ("v1", "v3")
"""How files of an older and of a newer format end."""
ROOT = Path(__file__).parents[2]
OLD_FILE = Path(__file__).with_name("format_1.kv.gz")
"""A file of format 1: what `put(make_key(1), make_kv(1), capture_position=0)` wrote in the last version that had it,
the parent of commit a074806."""
OLD_NAME = f"model-1/{CONTEXT}/{make_key(1).passage_id[:2]}/{make_key(1).passage_id}.h0-2.v1.kv"
"""And its name: the passage came last."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TieredStore]:
    """Of passages 1 to 3, of which 1 lies there in this version's format, and all in those of the others."""
    with TieredStore([DiskTier(tmp_path / "disk", budget_bytes=BUDGET)]) as writer:
        for number in (1, 2, 3):
            writer.put(make_key(number), make_kv(number), capture_position=0)
    for number in (1, 2, 3):
        file = tmp_path / "disk" / make_key(number).file_name
        for version in OTHERS:
            file.with_name(file.name.replace("v2", version)).write_bytes(file.read_bytes())
        if number > 1:
            file.unlink()
    (tmp_path / "disk" / ".index.sqlite3").unlink()  # an upgrade of the index's schema makes it anew
    tiers = [CPUTier(tmp_path / "cpu", budget_bytes=BUDGET), DiskTier(tmp_path / "disk", budget_bytes=BUDGET)]
    with TieredStore(tiers) as store:
        yield store


def test_what_another_version_stored_is_a_miss_and_this_ones_is_read(
    store: TieredStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = [make_key(number) for number in (1, 2, 3)]
    opened = store.open_many(keys)
    assert list(opened) == keys[:1] and set(store.lookup_many(keys)) == {keys[0]}
    for file in opened.values():
        file.close()
    assert store.verify().quarantined == ()
    # what is missing is encoded anew, beside the other versions' files, which those still read
    store.put(keys[1], make_kv(2), capture_position=0)
    store.open_many(keys[1:2])[keys[1]].close()
    assert len([path for path in tmp_path.rglob("*.kv") if ".v2." not in path.name]) == 2 * len(OTHERS) + 2


def test_a_deleted_passage_leaves_no_file_of_any_version(store: TieredStore, tmp_path: Path) -> None:
    store.delete([make_key(number).variant for number in (1, 2)])
    assert not [
        path for number in (1, 2) for path in (tmp_path / "disk" / make_key(number).variant.folder).glob("*.kv")
    ]
    assert [*tmp_path.rglob("*.kv")], "the third passage's are there"


def test_another_model_of_the_same_store_is_left_alone(store: TieredStore) -> None:
    """A newer transformers may read another configuration from the same files: then the fingerprint is another one."""
    other = replace(make_key(1), model_fingerprint="model-2")
    assert not store.lookup_many([other]) and not store.open_many([other])
    store.put(other, make_kv(1), capture_position=0)
    assert set(store.lookup_many([other, make_key(1)])) == {other, make_key(1)}


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    path = tmp_path / "disk" / OLD_NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.decompress(OLD_FILE.read_bytes()))
    return path


def test_a_file_of_format_1_is_counted_and_left_as_it_is(
    old_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = old_file.read_bytes()
    with TieredStore([DiskTier(tmp_path / "disk", budget_bytes=BUDGET)]) as store:
        assert "1 files of another format" in caplog.text
        assert not store.lookup_many([make_key(1)]) and not store.open_many([make_key(1)])
        store.put(make_key(1), make_kv(1), capture_position=0)
        assert not store.verify().quarantined
        (told,) = store.stats()
        assert (told.num_files, told.used_bytes) == (1, 2 * FILE_BYTES) and len(content) == FILE_BYTES
    assert old_file.read_bytes() == content


def test_a_file_of_format_1_is_not_read_under_a_name_of_this_one(old_file: Path, tmp_path: Path) -> None:
    """Control: this version's own file is, under the same name."""
    with TieredStore([DiskTier(tmp_path / "disk", budget_bytes=BUDGET)]) as store:
        store.put(make_key(1), make_kv(1), capture_position=0)
        (file,) = store.open_many([make_key(1)]).values()
        file.close()
        (tmp_path / "disk" / make_key(1).file_name).write_bytes(old_file.read_bytes())
        assert not store.open_many([make_key(1)])


def test_a_file_of_format_1_is_the_first_to_go(old_file: Path, tmp_path: Path) -> None:
    """However late it was used."""
    with TieredStore([DiskTier(tmp_path / "disk", budget_bytes=2 * FILE_BYTES)]) as store:
        store.put(make_key(2), make_kv(2), capture_position=0)
        os.utime(old_file)
        store.put(make_key(3), make_kv(3), capture_position=0)
        assert not old_file.exists() and len(store.lookup_many([make_key(2), make_key(3)])) == 2


def test_a_deleted_passage_loses_its_file_of_format_1(old_file: Path, tmp_path: Path) -> None:
    with TieredStore([DiskTier(tmp_path / "disk", budget_bytes=BUDGET)]) as store:
        store.delete([make_key(2).variant])
        assert old_file.exists()
        assert store.delete([make_key(1).variant]) == 1
    assert not [*(tmp_path / "disk").rglob("*.kv")]


def test_two_versions_at_a_time_do_not_harm_each_other(tmp_path: Path) -> None:
    """A process of a newer version has the folder open, and its index, while this one reads and checks."""
    keys = {number: make_key(number) for number in (1, 2, 3, 4)}
    command = [sys.executable, "-m", "tests.store.next_format", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}
    with TieredStore([tier := DiskTier(tmp_path, budget_bytes=BUDGET)]) as store:
        for number in (1, 2, 4):
            store.put(keys[number], make_kv(number), capture_position=0)
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as newer:  # fmt: skip
            assert newer.stdin is not None and newer.stdout is not None
            assert newer.stdout.readline() == "stored\n"
            assert set(store.lookup_many(keys.values())) == {keys[1], keys[2], keys[4]}
            with read(store, 2) as file:
                assert file.read().equal(make_kv(2))
            assert {entry.key for entry in tier.all_entries(page=1)} == {keys[1], keys[2], keys[4]}
            report = store.verify()
            assert report.num_files == 3 and not report.quarantined
            print(file=newer.stdin, flush=True)
            assert newer.stdout.read() == "done\n"
        assert newer.returncode == 0
        assert set(store.lookup_many(keys.values())) == {keys[2], keys[4]}  # 1 was deleted
        assert store.delete([keys[3].variant]) == 1  # the newer one's
