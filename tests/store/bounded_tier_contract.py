"""What a tier with a budget must do besides."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kvblend.core.errors import StoreFullError
from kvblend.store import NEVER, BoundedTier, PassageKVKey
from kvblend.store.codecs import codec_spec
from kvblend.store.content import TensorContent
from tests.store.samples import EXTENT_BYTES, FILE_BYTES, make_key, make_kv
from tests.store.tier_contract import TierContract, contains, content, delete, keys, opened, put


def held(tier: BoundedTier) -> set[PassageKVKey]:
    return {entry.key for entry in tier.all_entries(page=2)}


def pin(tier: BoundedTier, *numbers: int) -> int:
    return tier.pin([make_key(number).variant for number in numbers], pinned=True)


def unpin(tier: BoundedTier, *numbers: int) -> int:
    return tier.pin([make_key(number).variant for number in numbers], pinned=False)


def smaller_content(number: int) -> TensorContent:
    """By another codec, and of fewer layers: an extent takes 4 KiB at least."""
    return TensorContent(make_key(number), make_kv(number)[:1], capture_position=0, codec=codec_spec("int8", 1))


class BoundedTierContract(TierContract):
    @pytest.fixture
    def tier(self, tmp_path: Path) -> Iterator[BoundedTier]:
        """Room for three files and a half."""
        tier = self.make_tier(tmp_path / "tier", budget_bytes=3 * FILE_BYTES + FILE_BYTES // 2)
        assert isinstance(tier, BoundedTier)
        yield tier
        tier.check_integrity()
        tier.close()

    @pytest.fixture
    def slower(self, tmp_path: Path, tier: BoundedTier) -> Iterator[BoundedTier]:
        """Behind it, with room for two files."""
        slower = self.make_tier(tmp_path / "slower", budget_bytes=2 * FILE_BYTES)
        assert isinstance(slower, BoundedTier)
        tier.slower = slower
        yield slower
        slower.check_integrity()
        slower.close()

    def test_the_least_recently_used_goes_first(self, tier: BoundedTier) -> None:
        put(tier, 1, 2, 3)
        opened(tier, 1).close()
        put(tier, 4)
        assert held(tier) == keys(1, 3, 4)
        put(tier, 3)  # a put of what is there counts as a use
        put(tier, 5)
        assert held(tier) == keys(3, 4, 5)

    def test_a_lookup_is_no_use(self, tier: BoundedTier) -> None:
        put(tier, 1, 2, 3)
        assert contains(tier, 1)
        put(tier, 4)
        assert held(tier) == keys(2, 3, 4)

    def test_a_touch_is_a_use(self, tier: BoundedTier) -> None:
        put(tier, 1, 2, 3)
        assert tier.touch_many([make_key(1), make_key(4)]) == keys(1)
        put(tier, 4)
        assert held(tier) == keys(1, 3, 4)
        (entry,) = [entry for entry in tier.entries() if entry.key == make_key(1)]
        assert (entry.num_uses, entry.pinned) == (1, False)

    def test_evicted_files_move_to_the_slower_tier(self, tier: BoundedTier, slower: BoundedTier) -> None:
        put(tier, 1, 2, 3, 4)
        assert (held(tier), held(slower)) == (keys(2, 3, 4), keys(1))
        put(tier, 5, 6)  # the slower tier drops 1 for 3
        assert (held(tier), held(slower)) == (keys(4, 5, 6), keys(2, 3))
        with opened(slower, 2) as file:
            assert torch.equal(file.read(), make_kv(2))

    def test_what_lies_in_the_slower_tier_is_not_copied_again(self, tier: BoundedTier, slower: BoundedTier) -> None:
        put(slower, 1)
        self.damage(slower, make_key(1), offset=EXTENT_BYTES)
        put(tier, 1, 2, 3, 4)
        assert held(slower) == keys(1)
        delete(slower, 1)

    def test_move_down(self, tier: BoundedTier, slower: BoundedTier) -> None:
        put(tier, 1, 2)
        assert tier.move_down([make_key(1), make_key(9)]) == keys(1)
        assert (held(tier), held(slower)) == (keys(2), keys(1))
        assert slower.move_down([make_key(1)]) == set()  # there is nowhere to go
        put(slower, 3)
        pin(slower, 1, 3)
        assert tier.move_down([make_key(2)]) == set()  # no room
        assert held(tier) == keys(2)
        unpin(slower, 1, 3)
        pin(tier, 2)
        assert tier.move_down([make_key(2)]) == set()
        assert held(tier) == keys(2)

    def test_pinned_files_stay_beyond_the_tier_that_pinned_them(self, tier: BoundedTier, tmp_path: Path) -> None:
        put(tier, 1, 2, 3)
        assert pin(tier, 1, 8) == 1
        assert tier.stats().num_pinned == 1
        again = self.make_tier(tmp_path / "tier", budget_bytes=tier.budget_bytes)
        assert again.stats().num_pinned == 1
        again.put(content(4), NEVER)
        again.close()
        assert held(tier) == keys(1, 3, 4)
        assert unpin(tier, 1) == 1
        put(tier, 5)
        assert held(tier) == keys(3, 4, 5)

    def test_a_deleted_files_pin_goes_with_it(self, tier: BoundedTier) -> None:
        put(tier, 1)
        pin(tier, 1)
        assert delete(tier, 1) == 1
        put(tier, 1)
        assert tier.stats().num_pinned == 0

    def test_a_put_that_cannot_fit_changes_nothing(self, tier: BoundedTier) -> None:
        large = TensorContent(make_key(9), make_kv(9, shape=(40, 2, 5, 2, 8)), capture_position=0)
        put(tier, 1)
        with pytest.raises(StoreFullError, match=rf"{large.num_bytes}.*{tier.budget_bytes}"):
            tier.put(large, NEVER)
        put(tier, 2, 3)
        pin(tier, 1, 3)
        wide = TensorContent(make_key(9), make_kv(9, shape=(7, 2, 5, 2, 8)), capture_position=0)  # as two files
        with pytest.raises(StoreFullError, match="pinned"):
            tier.put(wide, NEVER)
        assert held(tier) == keys(1, 2, 3)
        unpin(tier, 1, 3)
        tier.put(wide, NEVER)
        assert held(tier) == {make_key(9), make_key(3)}

    def test_evict(self, tier: BoundedTier) -> None:
        put(tier, 1, 2, 3)
        assert tier.evict(FILE_BYTES + 1) == 2 * FILE_BYTES
        assert held(tier) == keys(3)
        assert tier.evict(1 << 40) == FILE_BYTES
        assert tier.evict(1) == 0

    def test_room(self, tier: BoundedTier) -> None:
        assert tier.has_room(tier.budget_bytes) and not tier.has_room(tier.budget_bytes + 1)
        put(tier, 1, 2, 3)
        assert tier.has_room(FILE_BYTES // 2) and not tier.has_room(FILE_BYTES)

    def test_bytes_are_their_first_owners(self, tier: BoundedTier) -> None:
        for number, owners in ((1, ["manuals", "news"]), (2, ["news"]), (3, [])):
            own = TensorContent(make_key(number), make_kv(number), capture_position=0, owners=owners)
            tier.put(own, NEVER)
        assert tier.owned_bytes() == {"manuals": own.num_bytes, "news": own.num_bytes}
        assert {entry.owner for entry in tier.entries()} == {"manuals", "news", ""}
        delete(tier, 1)
        assert tier.owned_bytes() == {"news": own.num_bytes}

    def test_delete_takes_what_is_pinned_or_quarantined(self, tier: BoundedTier) -> None:
        put(tier, 1, 2)
        pin(tier, 1)
        with opened(tier, 2) as file:
            file.quarantine()
        assert tier.stats().used_bytes == 2 * FILE_BYTES
        assert delete(tier, 1, 2) == 2
        assert tier.stats().used_bytes == 0

    def test_an_open_file_outlives_its_eviction(self, tier: BoundedTier) -> None:
        put(tier, 1)
        with opened(tier, 1) as file:
            put(tier, 2, 3, 4, 5)
            assert not contains(tier, 1)
            assert torch.equal(file.read(), make_kv(1))

    def test_quarantined_files_go_first(self, tier: BoundedTier) -> None:
        put(tier, 1, 2)
        with opened(tier, 2) as file:
            file.quarantine()
        assert tier.stats().used_bytes == 2 * FILE_BYTES
        put(tier, 3, 4)
        assert held(tier) == keys(1, 3, 4)
        assert tier.stats().used_bytes == 3 * FILE_BYTES

    def test_a_corrupt_file_does_not_move(self, tier: BoundedTier, slower: BoundedTier) -> None:
        put(tier, 1, 2, 3)
        self.damage(tier, make_key(1), offset=EXTENT_BYTES)
        self.damage(tier, make_key(2), offset=40)
        put(tier, 4, 5)
        assert (held(tier), held(slower)) == (keys(3, 4, 5), set())

    def test_verify_finds_what_is_damaged(self, tier: BoundedTier) -> None:
        put(tier, 1, 2)
        self.damage(tier, make_key(2), offset=EXTENT_BYTES)
        report = tier.verify()
        assert (report.num_files, report.quarantined) == (2, (make_key(2).file_name,))
        assert tier.verify().quarantined == () and held(tier) == keys(1)

    def test_a_replaced_file_keeps_its_use_and_its_pin(self, tier: BoundedTier) -> None:
        """A half of its size, which frees the other; and the one that is open stays what it was."""
        put(tier, 1, 2, 3)
        pin(tier, 1)
        before = {entry.key: entry for entry in tier.all_entries()}
        content = smaller_content(1)
        assert content.num_bytes < FILE_BYTES
        with opened(tier, 1) as file:
            old = file.read()
            uses = {entry.key: entry.num_uses for entry in tier.all_entries()}
            assert tier.replace(content)
            assert torch.equal(file.read(), old)
        after = {entry.key: entry for entry in tier.all_entries()}
        key = make_key(1)
        assert after[key].num_bytes == content.num_bytes and after[key].pinned and after[key].num_uses == uses[key]
        assert {key: entry for key, entry in after.items() if key != make_key(1)} == {
            key: entry for key, entry in before.items() if key != make_key(1)
        }
        with opened(tier, 1) as file:
            assert file.header.codec == content.header.codec

    def test_nothing_is_replaced_where_nothing_lies(self, tier: BoundedTier) -> None:
        assert not tier.replace(smaller_content(1))
        assert held(tier) == set()

    def test_one_owner_gives_up_its_own(self, tier: BoundedTier) -> None:
        put(tier, 1, 2, 3)
        assert tier.evict(10 * FILE_BYTES, owner="nobody") == 0
        assert held(tier) == keys(1, 2, 3)
