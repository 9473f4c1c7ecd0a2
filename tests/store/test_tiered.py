"""The store over both tiers: placement, promotion and demotion, pins, deletion."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kvblend.core.errors import CorruptPassageKVError, InvalidRequestError, StoreFullError
from kvblend.core.settings import Settings
from kvblend.store import PassageKVKey, TieredStore
from kvblend.store.content import CopiedContent, PassageKVContent
from tests.store.samples import FILE_BYTES, make_key, make_kv


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TieredStore]:
    """Room for two passages in the CPU tier and three in the disk tier."""
    settings = Settings(
        cpu_path=tmp_path / "cpu", cpu_bytes=2 * FILE_BYTES, disk_path=tmp_path / "disk", disk_bytes=3 * FILE_BYTES
    )
    with TieredStore.from_settings(settings) as store:
        yield store
        store.check_integrity()


def put(store: TieredStore, *numbers: int) -> list[str]:
    return [store.put(make_key(number), make_kv(number), capture_position=0) for number in numbers]


def where(store: TieredStore, *numbers: int) -> list[str | None]:
    return [store.lookup(make_key(number)) for number in numbers]


def path_in(store: TieredStore, tier: str, key: PassageKVKey) -> Path:
    return Path(next(each.location for each in store.tiers if each.name == tier)) / key.file_name


def delete(store: TieredStore, number: int) -> int:
    key = make_key(number)
    return store.delete(
        model_fingerprint=key.model_fingerprint, encode_context=key.encode_context, passage_id=key.passage_id
    )


def flip(path: Path, offset: int) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[offset] ^= 16
    path.write_bytes(damaged)


def test_new_passages_go_to_the_fastest_tier_and_old_ones_down(store: TieredStore) -> None:
    assert put(store, 1, 2, 3, 4, 5) == ["cpu"] * 5
    assert where(store, 1, 2, 3, 4, 5) == ["disk", "disk", "disk", "cpu", "cpu"]
    put(store, 6)
    assert where(store, 1, 2, 3, 4, 5, 6) == [None, "disk", "disk", "disk", "cpu", "cpu"]
    for number in range(2, 7):
        file = store.open(make_key(number))
        assert file is not None
        with file:
            assert torch.equal(file.read(), make_kv(number))


def test_a_put_of_what_is_there_keeps_its_place(store: TieredStore) -> None:
    put(store, 1, 2, 3)
    assert put(store, 1) == ["disk"]
    assert where(store, 1, 2, 3) == ["disk", "cpu", "cpu"]
    assert [tier.num_files for tier in store.stats()] == [2, 1]


def test_a_full_fast_tier_is_passed_over(store: TieredStore) -> None:
    put(store, 1, 2)
    assert store.pin(make_key(1)) and store.pin(make_key(2))
    assert put(store, 3, 4, 5) == ["disk"] * 3
    for number in (3, 4, 5):
        assert store.pin(make_key(number))
    with pytest.raises(StoreFullError, match=r"(?s)cpu.*disk"):
        put(store, 6)
    assert where(store, 1, 2, 3, 4, 5, 6) == ["cpu", "cpu", "disk", "disk", "disk", None]
    assert store.unpin(make_key(1))
    assert not store.unpin(make_key(1))
    assert put(store, 6) == ["cpu"]
    assert where(store, 1) == [None]  # the disk tier had no room for it


def test_a_tier_that_cannot_be_written_is_passed_over(store: TieredStore, caplog: pytest.LogCaptureFixture) -> None:
    blocker = path_in(store, "cpu", make_key(1)).parent
    blocker.parent.mkdir(parents=True)
    blocker.write_text("a file where a folder should be")
    assert put(store, 1) == ["disk"]
    assert "the cpu tier cannot be written" in caplog.text
    assert not store.promote(make_key(1))
    blocker.unlink()
    assert store.promote(make_key(1))


def test_promote_and_demote(store: TieredStore) -> None:
    put(store, 1, 2, 3)
    assert store.promote(make_key(1))
    assert where(store, 1, 2, 3) == ["cpu", "disk", "cpu"]
    assert path_in(store, "disk", make_key(1)).exists()  # a promotion copies
    assert not store.promote(make_key(1))
    assert not store.promote(make_key(9))
    assert store.demote(make_key(1))
    assert where(store, 1) == ["disk"]
    assert not store.demote(make_key(1))
    assert not store.demote(make_key(9))
    file = store.open(make_key(1))
    assert file is not None
    with file:
        assert torch.equal(file.read(), make_kv(1))


def test_a_promotion_that_does_not_fit_is_none(store: TieredStore) -> None:
    put(store, 1, 2, 3)
    assert store.pin(make_key(2)) and store.pin(make_key(3))
    assert not store.promote(make_key(1))
    assert where(store, 1) == ["disk"]


def test_a_corrupt_file_is_not_promoted(store: TieredStore) -> None:
    put(store, 1, 2, 3)
    flip(path_in(store, "disk", make_key(1)), 4096 + 5)
    assert not store.promote(make_key(1))
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
    assert not store.promote(make_key(1))
    assert where(store, 1) == [None]


def test_delete_reaches_every_tier_and_head_range(store: TieredStore) -> None:
    other = make_key(1, head_start=2)
    put(store, 1)
    store.put(other, make_kv(7), capture_position=0)
    assert store.demote(make_key(1)) and store.promote(make_key(1))
    assert store.pin(make_key(1))
    assert delete(store, 1) == 3
    assert (store.lookup(make_key(1)), store.lookup(other)) == (None, None)
    assert not store.unpin(make_key(1))
    assert delete(store, 1) == 0
    put(store, 1)
    assert store.pin(make_key(1))


def test_a_corrupt_copy_is_passed_over(store: TieredStore, caplog: pytest.LogCaptureFixture) -> None:
    put(store, 1)
    assert store.demote(make_key(1)) and store.promote(make_key(1))
    flip(path_in(store, "cpu", make_key(1)), 30)
    file = store.open(make_key(1))
    assert file is not None
    with file:
        assert file.tier == "disk"
        assert torch.equal(file.read(), make_kv(1))
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_reader_quarantines_what_it_finds_corrupt(store: TieredStore, caplog: pytest.LogCaptureFixture) -> None:
    put(store, 1)
    flip(path_in(store, "cpu", make_key(1)), 4096)
    file = store.open(make_key(1))
    assert file is not None
    with file:
        with pytest.raises(CorruptPassageKVError):
            file.read()
        store.quarantine(file)
        store.quarantine(file)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert store.open(make_key(1)) is None
    assert put(store, 1) == ["cpu"]


def test_a_put_replaces_a_file_with_a_corrupt_header(store: TieredStore) -> None:
    put(store, 1)
    flip(path_in(store, "cpu", make_key(1)), 0)
    assert put(store, 1) == ["cpu"]
    file = store.open(make_key(1))
    assert file is not None
    with file:
        assert torch.equal(file.read(), make_kv(1))


def test_verify_names_tier_and_file(store: TieredStore) -> None:
    put(store, 1, 2, 3)
    flip(path_in(store, "disk", make_key(1)), 4097)
    report = store.verify()
    assert (report.num_files, report.num_bytes) == (3, 3 * FILE_BYTES)
    assert report.quarantined == (f"disk:{make_key(1).file_name}",)
    assert store.verify().quarantined == ()


def test_evict_by_name(store: TieredStore) -> None:
    put(store, 1, 2)
    assert store.evict("cpu", 1) == FILE_BYTES
    assert where(store, 1, 2) == ["disk", "cpu"]
    with pytest.raises(InvalidRequestError, match=r"'gpu'.*cpu, disk"):
        store.evict("gpu", 1)


def test_pins_end_with_the_store(store: TieredStore, tmp_path: Path) -> None:
    settings = Settings(cpu_path=tmp_path / "cpu", cpu_bytes=2 * FILE_BYTES, disk_bytes=0)
    put(store, 1)
    with TieredStore.from_settings(settings) as other:
        assert other.pin(make_key(1)) and other.pin(make_key(1))
        assert not store.demote(make_key(1))
    assert store.demote(make_key(1))


def test_a_store_without_tiers_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="at least one tier"):
        TieredStore([])
