"""The store over both tiers: where a put must last, promotion and demotion, pins, deletion, heads put together."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvblend.core.errors import CorruptPassageKVError, InvalidRequestError, StoreFullError
from kvblend.core.settings import Settings
from kvblend.store import OpenPassageKV, PassageKVKey, StoredPassageKV, TieredStore
from kvblend.store.content import CopiedContent, PassageKVContent
from tests.store.samples import EXTENT_BYTES, FILE_BYTES, make_key, make_kv
from tests.store.store_samples import delete, demote, flip, opened, path_in, pin, promote, put, read, where


def make_settings(folder: Path, **changes: Any) -> Settings:
    """Room for two passages in the CPU tier and three in the disk tier."""
    own: dict[str, Any] = {
        "cpu_path": folder / "cpu",
        "cpu_bytes": 2 * FILE_BYTES,
        "codec": "raw",
        "disk_path": folder / "disk",
        "disk_bytes": 3 * FILE_BYTES,
        "eviction": "lru",
    }
    return Settings(**{**own, **changes})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TieredStore]:
    with TieredStore.from_settings(make_settings(tmp_path)) as store:
        yield store
        store.check_integrity()


@pytest.fixture
def memory_store(tmp_path: Path) -> Iterator[TieredStore]:
    """A put lasts in the fastest tier that takes it; what is evicted moves down."""
    with TieredStore.from_settings(make_settings(tmp_path, write="memory")) as store:
        yield store
        store.check_integrity()


def test_a_put_lasts_on_disk_and_is_read_from_memory(store: TieredStore, tmp_path: Path) -> None:
    assert put(store, 1, 2, 3) == ["disk"] * 3
    assert where(store, 1, 2, 3) == ["disk", "cpu", "cpu"]
    assert [tier.num_files for tier in store.stats()] == [2, 3]
    assert store.committed_many([make_key(number) for number in (1, 2, 3, 4)]) == {make_key(n) for n in (1, 2, 3)}
    put(store, 4)
    assert where(store, 1, 2, 3, 4) == [None, "disk", "cpu", "cpu"]  # the disk tier's least recently used
    for number in range(2, 5):
        with read(store, number) as file:
            assert torch.equal(file.read(), make_kv(number))


def test_a_put_that_does_not_last_is_refused(store: TieredStore) -> None:
    put(store, 1, 2, 3)
    for number in (1, 2, 3):
        pin(store, number)
    with pytest.raises(StoreFullError, match="pinned"):
        put(store, 4)
    assert where(store, 4) == [None]


def test_memory_takes_it_and_old_ones_move_down(memory_store: TieredStore) -> None:
    store = memory_store
    assert put(store, 1, 2, 3, 4, 5) == ["cpu"] * 5
    assert where(store, 1, 2, 3, 4, 5) == ["disk", "disk", "disk", "cpu", "cpu"]
    assert store.committed_many([make_key(1), make_key(5)]) == {make_key(1), make_key(5)}
    put(store, 6)
    assert where(store, 1, 2, 3, 4, 5, 6) == [None, "disk", "disk", "disk", "cpu", "cpu"]


def test_a_full_memory_is_passed_over(memory_store: TieredStore) -> None:
    store = memory_store
    put(store, 1, 2)
    assert pin(store, 1) + pin(store, 2) == 2
    assert put(store, 3, 4, 5) == ["disk"] * 3
    for number in (3, 4, 5):
        assert pin(store, number) == 1
    with pytest.raises(StoreFullError, match=r"(?s)cpu.*disk"):
        put(store, 6)
    assert where(store, 1, 2, 3, 4, 5, 6) == ["cpu", "cpu", "disk", "disk", "disk", None]
    assert pin(store, 1, pinned=False) == 1
    assert put(store, 6) == ["cpu"]
    assert where(store, 1) == [None]  # the disk tier had no room for it


def test_a_tier_that_cannot_be_written_is_passed_over(
    memory_store: TieredStore, caplog: pytest.LogCaptureFixture
) -> None:
    store = memory_store
    blocker = path_in(store, "cpu", make_key(1)).parent
    blocker.parent.mkdir(parents=True)
    blocker.write_text("a file where a folder should be")
    assert put(store, 1) == ["disk"]
    assert "the cpu tier cannot be written" in caplog.text
    assert not promote(store, 1)
    blocker.unlink()
    assert promote(store, 1)


def test_promote_and_demote(store: TieredStore) -> None:
    put(store, 1, 2, 3)
    assert promote(store, 1)
    assert where(store, 1, 2, 3) == ["cpu", "disk", "cpu"]
    assert path_in(store, "disk", make_key(1)).exists()  # a promotion copies
    assert promote(store, 1) and not promote(store, 9)
    assert demote(store, 1)
    assert where(store, 1) == ["disk"]
    assert not demote(store, 1) and not demote(store, 9)
    with read(store, 1) as file:
        assert torch.equal(file.read(), make_kv(1))


def test_a_promotion_that_does_not_fit_is_none(store: TieredStore) -> None:
    put(store, 1, 2, 3)
    assert pin(store, 2) + pin(store, 3) == 4
    assert not promote(store, 1)
    assert where(store, 1) == ["disk"]


def test_a_corrupt_file_is_not_promoted(store: TieredStore) -> None:
    put(store, 1, 2, 3)
    flip(path_in(store, "disk", make_key(1)), EXTENT_BYTES + 5)
    assert not promote(store, 1)
    assert where(store, 1) == [None]


def test_a_passage_deleted_while_it_is_promoted_stays_deleted(
    store: TieredStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, 1, 2, 3)
    write = CopiedContent.write

    def delete_then_write(content: PassageKVContent, fd: int) -> None:
        if content.key == make_key(1):
            assert delete(store, 1) == 1
        write(content, fd)

    monkeypatch.setattr(CopiedContent, "write", delete_then_write)
    assert not promote(store, 1)
    assert where(store, 1) == [None]


def test_delete_reaches_every_tier_and_head_range(store: TieredStore) -> None:
    other = make_key(1, head_start=2)
    put(store, 1)
    store.put(other, make_kv(7), capture_position=0)
    assert pin(store, 1) == 4
    assert delete(store, 1) == 4
    assert not store.lookup_many([make_key(1), other])
    assert delete(store, 1) == 0
    put(store, 1)
    assert [tier.num_pinned for tier in store.stats()] == [0, 0]


def test_a_corrupt_copy_is_passed_over(store: TieredStore, caplog: pytest.LogCaptureFixture) -> None:
    put(store, 1)
    flip(path_in(store, "cpu", make_key(1)), 30)
    with read(store, 1) as file:
        assert file.tier == "disk"
        assert torch.equal(file.read(), make_kv(1))
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_reader_quarantines_what_it_finds_corrupt(store: TieredStore, caplog: pytest.LogCaptureFixture) -> None:
    put(store, 1)
    flip(path_in(store, "cpu", make_key(1)), EXTENT_BYTES)
    with read(store, 1) as file:
        with pytest.raises(CorruptPassageKVError):
            file.read()
        assert file.quarantine() and not file.quarantine()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    with read(store, 1) as file:
        assert file.tier == "disk"


def test_a_put_replaces_a_file_with_a_corrupt_header(store: TieredStore) -> None:
    put(store, 1)
    for tier in ("cpu", "disk"):
        flip(path_in(store, tier, make_key(1)), 0)
    assert opened(store, 1) is None
    assert put(store, 1) == ["disk"]
    with read(store, 1) as file:
        assert torch.equal(file.read(), make_kv(1))


def test_verify_names_tier_and_file(store: TieredStore) -> None:
    put(store, 1, 2, 3)
    flip(path_in(store, "disk", make_key(1)), EXTENT_BYTES + 1)
    report = store.verify()
    assert (report.num_files, report.num_bytes) == (5, 5 * FILE_BYTES)
    assert report.quarantined == (f"disk:{make_key(1).file_name}",)
    assert store.verify().quarantined == ()


def test_evict_by_name(store: TieredStore) -> None:
    put(store, 1, 2)
    assert store.evict("cpu", 1) == FILE_BYTES
    assert where(store, 1, 2) == ["disk", "cpu"]
    with pytest.raises(InvalidRequestError, match=r"'gpu'.*cpu, disk"):
        store.evict("gpu", 1)


def test_a_store_without_tiers_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="at least one tier"):
        TieredStore([])


@pytest.mark.parametrize("position", [0, 7])
def test_what_has_the_attention_sink_is_stored_as_it_is(tmp_path: Path, position: int) -> None:
    """To the bit where it begins at position 0, whatever the codec; a codec's own numbers elsewhere."""
    kv = make_kv(1)
    with TieredStore.from_settings(make_settings(tmp_path, codec="entropy")) as store:
        store.put(make_key(1), kv, capture_position=position)
        with store.open_many([make_key(1)])[make_key(1)] as file:
            assert isinstance(file, StoredPassageKV)
            assert file.header.codec.name == ("raw" if position == 0 else "entropy")
            assert torch.equal(file.read(), kv) == (position == 0)


def test_a_remote_write_policy_needs_a_remote_tier(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="KVBLEND_WRITE is 'remote'"):
        TieredStore.from_settings(make_settings(tmp_path, write="remote"))


NUM_HEADS = 8
RANGES = st.lists(
    st.tuples(st.integers(0, NUM_HEADS - 1), st.integers(1, NUM_HEADS)), min_size=1, max_size=6, unique=True
)


@settings(max_examples=60, deadline=None)
@given(stored=RANGES, start=st.integers(0, NUM_HEADS - 1), count=st.integers(1, NUM_HEADS))
def test_heads_are_put_together_from_whatever_ranges_have_them(
    tmp_path_factory: pytest.TempPathFactory, stored: list[tuple[int, int]], start: int, count: int
) -> None:
    """What one tensor-parallel size wrote, another reads; where a head is in no file it is a miss."""
    kv = make_kv(1, shape=(3, 2, 5, NUM_HEADS, 8))
    ranges = [(first, min(first + num, NUM_HEADS)) for first, num in stored]
    end = min(start + count, NUM_HEADS)
    own = make_settings(tmp_path_factory.mktemp("s"), cpu_bytes=0, disk_bytes=1 << 20)
    with TieredStore.from_settings(own) as store:
        for first, last in ranges:
            part = make_key(1, head_start=first, num_heads=last - first)
            store.put(part, kv[:, :, :, first:last], capture_position=3)
        key = make_key(1, head_start=start, num_heads=end - start)
        covered = all(any(first <= head < last for first, last in ranges) for head in range(start, end))
        assert (key in store.lookup_many([key])) == covered
        file = store.open_many([key]).get(key)
        assert (file is not None) == covered
        if file is not None:
            check_joined(file, key, kv[:, :, :, start:end])


def check_joined(file: OpenPassageKV, key: PassageKVKey, expected: torch.Tensor) -> None:
    assert isinstance(file, StoredPassageKV)
    with file:
        assert (file.header.key, file.header.capture_position) == (key, 3)
        assert torch.equal(file.read(), expected)
        assert torch.equal(file.read_layer(1), expected[1])


def test_a_corrupt_part_is_put_aside_and_the_others_stay(tmp_path: Path) -> None:
    kv = make_kv(1, shape=(3, 2, 5, 4, 8))
    with TieredStore.from_settings(make_settings(tmp_path, cpu_bytes=0, disk_bytes=1 << 20)) as store:
        halves = [make_key(1, head_start=0), make_key(1, head_start=2)]
        for own in halves:
            store.put(own, kv[:, :, :, own.head_start : own.head_end], capture_position=3)
        flip(path_in(store, "disk", halves[1]), EXTENT_BYTES)
        whole = make_key(1, num_heads=4)
        file = store.open_many([whole])[whole]
        assert isinstance(file, StoredPassageKV)
        with file:
            with pytest.raises(CorruptPassageKVError):
                file.read()
            assert file.quarantine()
        assert set(store.lookup_many([*halves, whole])) == {halves[0]}
