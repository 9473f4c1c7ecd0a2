"""What every tier must do: subclass `TierContract`, say how to make the tier, and pytest runs it all."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kvblend.core.errors import CorruptPassageKVError, StoreFullError
from kvblend.store import OpenPassageKV, PassageKVHeader, PassageKVKey, Tier
from kvblend.store.content import CopiedContent, PassageKVContent, TensorContent
from tests.store.samples import CONTEXT, EXTENT_BYTES, FILE_BYTES, SHAPE, make_key, make_kv

NUM_FIT = 3


def put(tier: Tier, number: int) -> bool:
    return tier.put(TensorContent(make_key(number), make_kv(number), capture_position=number))


def opened(tier: Tier, number: int) -> OpenPassageKV:
    file = tier.open(make_key(number))
    assert file is not None
    return file


def held(tier: Tier) -> set[PassageKVKey]:
    return {entry.key for entry in tier.entries()}


def keys(*numbers: int) -> set[PassageKVKey]:
    return {make_key(number) for number in numbers}


class HalfWritten(PassageKVContent):
    """Content whose source breaks in the middle."""

    def __init__(self, number: int, error: Exception) -> None:
        self.key = make_key(number)
        self.num_bytes = FILE_BYTES
        self._whole = TensorContent(self.key, make_kv(number), capture_position=0)
        self._error = error

    def header(self) -> PassageKVHeader:
        return self._whole.header()

    def layers(self) -> Iterator[Tensor]:
        yield next(self._whole.layers())
        raise self._error


class TierContract(ABC):
    header_bytes = EXTENT_BYTES
    """What a header takes in the tier; 0 where headers lie elsewhere, and cannot be damaged."""

    evicts_open = True
    """An open file may leave the tier, and stays readable; else it is not evicted."""

    keeps_quarantined = True
    """A quarantined file stays in the tier, uncounted as a file, until room is needed."""

    @abstractmethod
    def make_tier(self, folder: Path, *, budget_bytes: int) -> Tier:
        """A tier over `folder`, or anywhere if it needs none."""

    @abstractmethod
    def damage(self, tier: Tier, key: PassageKVKey, *, offset: int) -> None:
        """Flip a bit of what is stored at `offset` of the file, header included."""

    @property
    def file_bytes(self) -> int:
        """What a passage KV of SHAPE takes in the tier."""
        return self.header_bytes + SHAPE[0] * EXTENT_BYTES

    @pytest.fixture
    def tier(self, tmp_path: Path) -> Iterator[Tier]:
        """Room for NUM_FIT files and a half."""
        tier = self.make_tier(tmp_path / "tier", budget_bytes=self.file_bytes * NUM_FIT + self.file_bytes // 2)
        yield tier
        tier.check_integrity()
        tier.close()

    def test_put_then_open(self, tier: Tier) -> None:
        assert not tier.contains(make_key(1))
        assert tier.open(make_key(1)) is None
        assert put(tier, 1)
        assert tier.contains(make_key(1))
        with opened(tier, 1) as file:
            assert file.tier == tier.name
            assert file.header.key == make_key(1)
            assert file.header.capture_position == 1
            assert file.num_bytes == self.file_bytes
            assert torch.equal(file.read(), make_kv(1))

    def test_a_second_put_keeps_the_first_file(self, tier: Tier) -> None:
        assert put(tier, 1)
        assert not tier.put(TensorContent(make_key(1), make_kv(2), capture_position=0))
        with opened(tier, 1) as file:
            assert torch.equal(file.read(), make_kv(1))

    def test_head_ranges_lie_side_by_side(self, tier: Tier) -> None:
        for rank in range(2):
            key = make_key(1, head_start=2 * rank)
            tier.put(TensorContent(key, make_kv(rank), capture_position=0))
        for rank in range(2):
            file = tier.open(make_key(1, head_start=2 * rank))
            assert file is not None
            with file:
                assert torch.equal(file.read(), make_kv(rank))

    def test_the_least_recently_used_goes_first(self, tier: Tier) -> None:
        for number in (1, 2, 3):
            put(tier, number)
        opened(tier, 1).close()
        put(tier, 4)
        assert held(tier) == keys(1, 3, 4)
        put(tier, 3)  # a put of what is there counts as a use
        put(tier, 5)
        assert held(tier) == keys(3, 4, 5)

    def test_a_lookup_is_no_use(self, tier: Tier) -> None:
        for number in (1, 2, 3):
            put(tier, number)
        assert tier.contains(make_key(1))
        put(tier, 4)
        assert held(tier) == keys(2, 3, 4)

    def test_a_touch_is_a_use(self, tier: Tier) -> None:
        for number in (1, 2, 3):
            put(tier, number)
        assert tier.touch(make_key(1))
        assert not tier.touch(make_key(4))
        put(tier, 4)
        assert held(tier) == keys(1, 3, 4)

    def test_a_put_may_be_dated_back(self, tier: Tier) -> None:
        for number in (1, 2):
            put(tier, number)
        old = time.time_ns() - 10**12
        tier.put(TensorContent(make_key(3), make_kv(3), capture_position=0), used_ns=old)
        assert {entry.used_ns for entry in tier.entries() if entry.key == make_key(3)} == {old}
        put(tier, 4)
        assert held(tier) == keys(1, 2, 4)

    def test_evicted_files_move_to_the_slower_tier(self, tier: Tier, tmp_path: Path) -> None:
        slower = self.make_tier(tmp_path / "slower", budget_bytes=self.file_bytes)
        tier.slower = slower
        for number in (1, 2, 3, 4):
            put(tier, number)
        assert (held(tier), held(slower)) == (keys(2, 3, 4), keys(1))
        put(tier, 5)  # the slower tier drops 1 for 2
        assert (held(tier), held(slower)) == (keys(3, 4, 5), keys(2))
        with opened(slower, 2) as file:
            assert torch.equal(file.read(), make_kv(2))
        slower.check_integrity()
        slower.close()

    def test_a_demoted_file_keeps_its_time(self, tier: Tier, tmp_path: Path) -> None:
        slower = self.make_tier(tmp_path / "slower", budget_bytes=2 * self.file_bytes)
        tier.slower = slower
        put(slower, 1)  # older in the slower tier than in the faster one
        for number in (1, 2):
            put(tier, number)
        times = {entry.key: entry.used_ns for entry in tier.entries()}
        assert tier.demote(make_key(1))
        assert tier.demote(make_key(2))
        assert {entry.key: entry.used_ns for entry in slower.entries()} == times
        slower.close()

    def test_demote(self, tier: Tier, tmp_path: Path) -> None:
        put(tier, 1)
        assert not tier.demote(make_key(1))  # there is nowhere to go
        slower = self.make_tier(tmp_path / "slower", budget_bytes=self.file_bytes)
        tier.slower = slower
        assert not tier.demote(make_key(9))
        assert tier.demote(make_key(1))
        assert (held(tier), held(slower)) == (set(), keys(1))
        put(tier, 2)
        pin = slower.pin(make_key(1))
        assert pin is not None
        assert not tier.demote(make_key(2))  # no room
        assert held(tier) == keys(2)
        pin.release()
        slower.close()

    def test_pinned_files_stay(self, tier: Tier) -> None:
        for number in (1, 2, 3):
            put(tier, number)
        pin = tier.pin(make_key(1))
        also = tier.pin(make_key(1))
        assert pin is not None and pin.holds()
        assert also is not None
        assert tier.stats().num_pinned == 1
        assert not tier.demote(make_key(1))
        put(tier, 4)
        assert held(tier) == keys(1, 3, 4)
        pin.release()
        pin.release()
        put(tier, 5)
        assert held(tier) == keys(1, 4, 5)
        also.release()
        assert not also.holds()
        put(tier, 6)
        assert held(tier) == keys(4, 5, 6)

    def test_what_is_not_there_cannot_be_pinned(self, tier: Tier) -> None:
        assert tier.pin(make_key(1)) is None

    def test_a_pin_on_a_replaced_file_holds_no_more(self, tier: Tier) -> None:
        put(tier, 1)
        pin = tier.pin(make_key(1))
        assert pin is not None
        assert self.delete(tier, 1) == 1
        assert not pin.holds()
        put(tier, 1)
        assert not pin.holds()
        pin.release()

    def test_a_put_that_cannot_fit_changes_nothing(self, tier: Tier) -> None:
        large = TensorContent(make_key(9), make_kv(9, shape=(40, 2, 5, 2, 8)), capture_position=0)
        put(tier, 1)
        num_bytes = large.header().payload_bytes + self.header_bytes
        with pytest.raises(StoreFullError, match=rf"{num_bytes}.*{tier.budget_bytes}"):
            tier.put(large)
        for number in (2, 3):
            put(tier, number)
        pins = [tier.pin(make_key(number)) for number in (1, 3)]
        num_layers = (2 * self.file_bytes - self.header_bytes) // EXTENT_BYTES  # as much as two files take
        wide = TensorContent(make_key(9), make_kv(9, shape=(num_layers, 2, 5, 2, 8)), capture_position=0)
        with pytest.raises(StoreFullError, match="pinned"):
            tier.put(wide)
        assert held(tier) == keys(1, 2, 3)
        for pin in pins:
            assert pin is not None
            pin.release()
        tier.put(wide)
        assert held(tier) == {make_key(9), make_key(3)}

    def test_evict(self, tier: Tier) -> None:
        for number in (1, 2, 3):
            put(tier, number)
        assert tier.evict(self.file_bytes + 1) == 2 * self.file_bytes
        assert held(tier) == keys(3)
        assert tier.evict(1 << 40) == self.file_bytes
        assert tier.evict(1) == 0

    def delete(self, tier: Tier, number: int) -> int:
        key = make_key(number)
        return tier.delete(model_fingerprint="model-1", encode_context=CONTEXT, passage_id=key.passage_id)

    def test_delete_takes_every_head_range_pinned_or_not(self, tier: Tier) -> None:
        for rank in range(2):
            key = make_key(1, head_start=2 * rank)
            tier.put(TensorContent(key, make_kv(rank), capture_position=0))
        put(tier, 2)
        pin = tier.pin(make_key(1))
        assert pin is not None
        with opened(tier, 1) as file:
            assert self.delete(tier, 1) == 2
            assert torch.equal(file.read(), make_kv(0))  # what is open stays readable
        assert held(tier) == keys(2)
        assert tier.stats().used_bytes == self.file_bytes
        assert self.delete(tier, 1) == 0
        pin.release()

    def test_an_open_file_outlives_its_eviction(self, tier: Tier) -> None:
        put(tier, 1)
        with opened(tier, 1) as file:
            for number in (2, 3, 4, 5):
                put(tier, number)
            assert tier.contains(make_key(1)) != self.evicts_open
            assert torch.equal(file.read(), make_kv(1))

    @pytest.mark.parametrize("error", [OSError(5, "the device broke"), CorruptPassageKVError("bad"), KeyError("bug")])
    def test_a_put_that_breaks_leaves_nothing(self, tier: Tier, error: Exception) -> None:
        with pytest.raises(type(error)):
            tier.put(HalfWritten(1, error))
        assert held(tier) == set()
        assert tier.stats().used_bytes == 0

    def test_of_two_writers_of_one_key_the_first_to_finish_wins(self, tier: Tier) -> None:
        class Overtaken(TensorContent):
            def layers(self) -> Iterator[Tensor]:
                assert put(tier, 1)
                yield from super().layers()

        assert not tier.put(Overtaken(make_key(1), make_kv(1), capture_position=9))
        with opened(tier, 1) as file:
            assert file.header.capture_position == 1
        assert tier.stats().used_bytes == self.file_bytes

    def test_a_corrupt_layer_is_found_by_the_reader(self, tier: Tier, caplog: pytest.LogCaptureFixture) -> None:
        put(tier, 1)
        self.damage(tier, make_key(1), offset=2 * 4096 + 7)
        with opened(tier, 1) as file, opened(tier, 1) as other:
            assert torch.equal(file.read_layer(0), make_kv(1)[0])
            with pytest.raises(CorruptPassageKVError, match="layer 1"):
                file.read()
            assert tier.quarantine(file)
            assert not tier.contains(make_key(1))
            assert put(tier, 1)
            assert not tier.quarantine(other)  # that file is gone already; the new one is sound
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        with opened(tier, 1) as file:
            assert torch.equal(file.read(), make_kv(1))

    def test_quarantined_files_go_first(self, tier: Tier) -> None:
        put(tier, 1)
        put(tier, 2)
        with opened(tier, 2) as file:
            tier.quarantine(file)
        assert tier.stats().used_bytes == (2 if self.keeps_quarantined else 1) * self.file_bytes
        put(tier, 3)
        put(tier, 4)
        assert held(tier) == keys(1, 3, 4)
        assert tier.stats().used_bytes == 3 * self.file_bytes

    def test_a_corrupt_file_is_not_demoted(self, tier: Tier, tmp_path: Path) -> None:
        slower = self.make_tier(tmp_path / "slower", budget_bytes=4 * self.file_bytes)
        tier.slower = slower
        for number in (1, 2, 3):
            put(tier, number)
        self.damage(tier, make_key(1), offset=4096)
        self.damage(tier, make_key(2), offset=40 if self.header_bytes else EXTENT_BYTES)
        for number in (4, 5):
            put(tier, number)
        assert (held(tier), held(slower)) == (keys(3, 4, 5), set())
        assert slower.stats().used_bytes == 0
        slower.close()

    def test_a_copy_is_the_same_file(self, tier: Tier, tmp_path: Path) -> None:
        other = self.make_tier(tmp_path / "other", budget_bytes=4 * self.file_bytes)
        put(tier, 1)
        with opened(tier, 1) as file:
            other.put(CopiedContent(file))
            with opened(other, 1) as copy:
                assert copy.header == file.header
                assert torch.equal(copy.read(), make_kv(1))
        other.close()

    def test_one_opening_may_be_closed_twice(self, tier: Tier) -> None:
        for number in (1, 2, 3):
            put(tier, number)
        with opened(tier, 1) as file:
            closed = opened(tier, 1)
            closed.close()
            closed.close()
            put(tier, 4)
            put(tier, 5)
            put(tier, 6)
            assert torch.equal(file.read(), make_kv(1))

    def test_verify_finds_what_is_bad(self, tier: Tier) -> None:
        for number in (1, 2, 3):
            put(tier, number)
        report = tier.verify()
        assert (report.num_files, report.num_bytes, report.quarantined) == (3, 3 * self.file_bytes, ())
        self.damage(tier, make_key(1), offset=0 if self.header_bytes else EXTENT_BYTES)
        self.damage(tier, make_key(2), offset=4096 * 4 - 1)
        report = tier.verify()
        assert set(report.quarantined) == {make_key(1).file_name, make_key(2).file_name}
        assert held(tier) == keys(3)
