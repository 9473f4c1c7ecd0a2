"""What every tier must do: subclass `TierContract`, say how to make the tier, and pytest runs it all."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kvblend.core.errors import CorruptPassageKVError
from kvblend.store import NEVER, PassageKVKey, StoredPassageKV, Tier
from kvblend.store.content import PassageKVContent, TensorContent
from tests.store.samples import CONTEXT, EXTENT_BYTES, FILE_BYTES, make_key, make_kv

OTHER_CONTEXT = CONTEXT[::-1]


def content(number: int, *, key: PassageKVKey | None = None) -> TensorContent:
    return TensorContent(key or make_key(number), make_kv(number), capture_position=number)


def put(tier: Tier, *numbers: int) -> bool:
    return all([tier.put(content(number), NEVER) for number in numbers])


def opened(tier: Tier, number: int) -> StoredPassageKV:
    return tier.fetch_many([make_key(number)], NEVER)[make_key(number)]


def contains(tier: Tier, number: int) -> bool:
    return tier.lookup_many([make_key(number)], NEVER) == {make_key(number)}


def is_miss(tier: Tier, number: int) -> bool:
    return not tier.fetch_many([make_key(number)], NEVER)


def delete(tier: Tier, *numbers: int) -> int:
    return tier.delete([make_key(number).variant for number in numbers], NEVER)


def keys(*numbers: int) -> set[PassageKVKey]:
    return {make_key(number) for number in numbers}


class HalfWritten(PassageKVContent):
    """Content whose source breaks in the middle."""

    def __init__(self, number: int, error: Exception) -> None:
        self._whole = content(number)
        self.header = self._whole.header
        self._error = error

    def layers(self) -> Iterator[Tensor]:
        yield next(self._whole.layers())
        raise self._error


class TierContract(ABC):
    counts = True
    """Whether the tier counts what lies in it; what is others' store too does not."""

    @abstractmethod
    def make_tier(self, folder: Path, *, budget_bytes: int) -> Tier:
        """A tier over `folder`, or anywhere if it needs none."""

    @abstractmethod
    def damage(self, tier: Tier, key: PassageKVKey, *, offset: int) -> None:
        """Flip a bit of what is stored at `offset` of the file, header included."""

    @pytest.fixture
    def tier(self, tmp_path: Path) -> Iterator[Tier]:
        """Room for three files and a half, where there is a bound."""
        tier = self.make_tier(tmp_path / "tier", budget_bytes=3 * FILE_BYTES + FILE_BYTES // 2)
        yield tier
        tier.close()

    def test_put_then_fetch(self, tier: Tier) -> None:
        assert not contains(tier, 1) and is_miss(tier, 1)
        assert put(tier, 1)
        assert contains(tier, 1)
        with opened(tier, 1) as file:
            assert file.tier == tier.name
            assert file.header.key == make_key(1)
            assert file.header.capture_position == 1
            assert file.num_bytes == FILE_BYTES
            assert torch.equal(file.read(), make_kv(1))

    def test_many_at_once(self, tier: Tier) -> None:
        put(tier, 1, 2)
        wanted = [make_key(number) for number in (1, 2, 3)]
        assert tier.lookup_many(wanted, NEVER) == keys(1, 2)
        files = tier.fetch_many(wanted, NEVER)
        assert set(files) == keys(1, 2)
        for number in (1, 2):
            with files[make_key(number)] as file:
                assert torch.equal(file.read(), make_kv(number))
        assert tier.lookup_many([], NEVER) == set() and not tier.fetch_many([], NEVER)

    def test_a_second_put_keeps_the_first_file(self, tier: Tier) -> None:
        assert put(tier, 1)
        assert not tier.put(content(2, key=make_key(1)), NEVER)
        with opened(tier, 1) as file:
            assert torch.equal(file.read(), make_kv(1))

    def test_head_ranges_and_encode_contexts_lie_side_by_side(self, tier: Tier) -> None:
        own = [make_key(1), make_key(1, head_start=2), make_key(1, context=OTHER_CONTEXT)]
        for number, key in enumerate(own):
            assert tier.put(content(number, key=key), NEVER)
        assert tier.variants("model-1", make_key(1).passage_id, NEVER) == set(own)
        assert tier.variants("model-1", make_key(9).passage_id, NEVER) == set()
        for number, key in enumerate(own):
            with tier.fetch_many([key], NEVER)[key] as file:
                assert torch.equal(file.read(), make_kv(number))

    def test_delete_takes_every_head_range_of_a_variant(self, tier: Tier) -> None:
        own = [make_key(1), make_key(1, head_start=2), make_key(1, context=OTHER_CONTEXT)]
        for key in own:
            tier.put(content(1, key=key), NEVER)
        with opened(tier, 1) as file:
            assert delete(tier, 1, 5) == 2
            assert torch.equal(file.read(), make_kv(1))  # what is open stays readable
        assert tier.variants("model-1", make_key(1).passage_id, NEVER) == {own[2]}
        assert tier.delete([own[2].variant], NEVER) == 1
        assert tier.delete([key.variant for key in own], NEVER) == 0
        assert not self.counts or (tier.stats().num_files, tier.stats().used_bytes) == (0, 0)

    @pytest.mark.parametrize("error", [OSError(5, "the device broke"), CorruptPassageKVError("bad"), KeyError("bug")])
    def test_a_put_that_breaks_leaves_nothing(self, tier: Tier, error: Exception) -> None:
        with pytest.raises(type(error)):
            tier.put(HalfWritten(1, error), NEVER)
        assert is_miss(tier, 1) and not contains(tier, 1)
        assert not self.counts or tier.stats().used_bytes == 0

    def test_of_two_writers_of_one_key_the_first_to_finish_wins(self, tier: Tier) -> None:
        class Overtaken(TensorContent):
            def layers(self) -> Iterator[Tensor]:
                put(tier, 1)
                yield from super().layers()

        assert not tier.put(Overtaken(make_key(1), make_kv(1), capture_position=9), NEVER)
        with opened(tier, 1) as file:
            assert file.header.capture_position == 1
        assert not self.counts or tier.stats().used_bytes == FILE_BYTES

    def test_a_corrupt_layer_is_found_by_the_reader(self, tier: Tier, caplog: pytest.LogCaptureFixture) -> None:
        put(tier, 1)
        self.damage(tier, make_key(1), offset=2 * EXTENT_BYTES + 7)
        with opened(tier, 1) as file, opened(tier, 1) as other:
            assert torch.equal(file.read_layer(0), make_kv(1)[0])
            with pytest.raises(CorruptPassageKVError, match="layer 1"):
                file.read()
            assert file.quarantine()
            assert not contains(tier, 1)
            assert put(tier, 1)
            assert not other.quarantine()  # that file is gone already; the new one is sound
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        with opened(tier, 1) as file:
            assert torch.equal(file.read(), make_kv(1))

    def test_a_corrupt_header_is_a_miss(self, tier: Tier, caplog: pytest.LogCaptureFixture) -> None:
        put(tier, 1)
        self.damage(tier, make_key(1), offset=40)
        assert is_miss(tier, 1)
        assert not contains(tier, 1)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert put(tier, 1)
        with opened(tier, 1) as file:
            assert torch.equal(file.read(), make_kv(1))
