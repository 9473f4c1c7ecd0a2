"""A store that services of several versions share, or one leaves to the next: a rolling upgrade, and the way back."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvblend.store import CPUTier, DiskTier, TieredStore
from tests.store.samples import make_key, make_kv

BUDGET = 1 << 24
OTHERS = ("v1", "v3")
"""How files of an older and of a newer format end."""


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
