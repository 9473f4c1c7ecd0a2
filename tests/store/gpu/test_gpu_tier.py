"""The GPU tier, its arena in CPU memory: the contract of every tier, and what is particular to an arena."""

import logging
import threading
from pathlib import Path

import pytest
import torch

from kvblend.core.errors import CorruptPassageKVError, InvalidRequestError, StoreFullError
from kvblend.store import GPUTier, PassageKVKey, Tier
from kvblend.store.content import CopiedContent, TensorContent
from tests.store.samples import EXTENT_BYTES, SHAPE, make_key, make_kv
from tests.store.tier_contract import TierContract, held, keys, opened, put

PAYLOAD_BYTES = SHAPE[0] * EXTENT_BYTES


class TestGPUTier(TierContract):
    device = "cpu"
    header_bytes = 0
    evicts_open = False
    keeps_quarantined = False

    def make_tier(self, folder: Path, *, budget_bytes: int) -> Tier:
        return GPUTier(self.device, budget_bytes=budget_bytes)

    def damage(self, tier: Tier, key: PassageKVKey, *, offset: int) -> None:
        assert isinstance(tier, GPUTier)
        damage(tier, key, offset=offset - EXTENT_BYTES)

    def test_files_end_with_the_tier(self, tier: Tier, tmp_path: Path) -> None:
        put(tier, 1)
        again = self.make_tier(tmp_path / "tier", budget_bytes=tier.budget_bytes)
        assert again.stats().num_files == 0
        tier.close()
        assert not tier.contains(make_key(1))


def damage(tier: GPUTier, key: PassageKVKey, *, offset: int) -> None:
    """Flip a bit of the resident's bytes, which is no use of it."""
    tier._listed[key].extents.view(-1)[offset] ^= 1


def make_tier(num_fit: int) -> GPUTier:
    return GPUTier("cpu", budget_bytes=num_fit * PAYLOAD_BYTES)


def put_layers(tier: GPUTier, number: int, num_layers: int) -> bool:
    shape = (num_layers, *SHAPE[1:])
    return tier.put(TensorContent(make_key(number), make_kv(number, shape=shape), capture_position=0))


def test_a_hit_is_what_the_kernels_take_without_a_copy() -> None:
    tier = make_tier(2)
    put(tier, 1)
    with opened(tier, 1) as file:
        staged = file.staged()
        assert staged is not None
        staged.check(SHAPE[3], SHAPE[4], torch.device("cpu"))
        assert torch.equal(staged.payload, make_kv(1))
        extents = tier._listed[make_key(1)].extents
        assert staged.payload.data_ptr() == extents.data_ptr()
        assert staged.payload.stride(0) * staged.payload.element_size() == EXTENT_BYTES


def test_what_is_open_is_neither_evicted_nor_overwritten() -> None:
    tier = make_tier(2)
    put(tier, 1)
    put(tier, 2)
    first, second = opened(tier, 1), opened(tier, 1)
    staged = second.staged()
    assert staged is not None
    first.close()
    assert not tier.drop(make_key(1))
    with pytest.raises(StoreFullError, match="only 12288 bytes on cpu are neither pinned nor open, not 24576"):
        tier.evict(2 * PAYLOAD_BYTES)
    for number in (3, 4):
        put(tier, number)
    assert held(tier) == keys(1, 4)
    assert torch.equal(staged.payload, make_kv(1))
    with opened(tier, 4), pytest.raises(StoreFullError, match=r"no 12288 bytes side by side .* 24576.*open"):
        put(tier, 5)
    second.close()
    put(tier, 5)
    put(tier, 6)
    assert held(tier) == keys(5, 6)
    tier.check_integrity()


def test_a_deleted_passage_gives_its_bytes_back_when_it_is_closed() -> None:
    tier = make_tier(1)
    key = make_key(1)
    put(tier, 1)
    with opened(tier, 1) as file:
        assert tier.delete(
            model_fingerprint=key.model_fingerprint, encode_context=key.encode_context, passage_id=key.passage_id
        )
        assert (tier.stats().num_files, tier.stats().used_bytes) == (0, PAYLOAD_BYTES)
        with pytest.raises(StoreFullError):
            put(tier, 2)
        assert torch.equal(file.read(), make_kv(1))
    assert tier.stats().used_bytes == 0
    assert put(tier, 2)
    tier.check_integrity()


def test_room_is_made_side_by_side_and_what_makes_no_difference_stays() -> None:
    """In [1 1 2 3 3 4], 2 was used first and 1 next: two layers fit where 1 lay, so 2 need not go."""
    tier = GPUTier("cpu", budget_bytes=6 * EXTENT_BYTES)
    for number, num_layers in ((1, 2), (2, 1), (3, 2), (4, 1)):
        put_layers(tier, number, num_layers)
    for number in (2, 1, 3, 4):
        tier.touch(make_key(number))
    put_layers(tier, 5, 2)
    assert held(tier) == keys(2, 3, 4, 5)
    put_layers(tier, 6, 3)  # 2 and 3 lie side by side
    assert held(tier) == keys(4, 5, 6)
    tier.check_integrity()


def test_a_budget_is_rounded_down_to_whole_extents() -> None:
    tier = GPUTier("cpu", budget_bytes=2 * EXTENT_BYTES - 1)
    assert put_layers(tier, 1, 1)
    with pytest.raises(StoreFullError, match=r"8192 bytes of one passage KV are over the gpu tier's 8191"):
        put_layers(tier, 2, 2)


def test_another_kind_of_device_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="meta"):
        GPUTier("meta", budget_bytes=EXTENT_BYTES)


def test_what_is_reserved_is_found_once_it_is_committed() -> None:
    tier, other = make_tier(2), make_tier(1)
    put(other, 1)
    with opened(other, 1) as source:
        passage = tier.reserve(source.header)
        assert passage is not None
        assert not tier.contains(make_key(1))
        assert (tier.stats().num_files, tier.stats().used_bytes) == (0, PAYLOAD_BYTES)
        passage.resident.extents.copy_(other._listed[make_key(1)].extents)
    assert tier.commit(passage, None)
    assert not tier.commit(passage, None)
    passage.close()
    with opened(tier, 1) as file:
        assert torch.equal(file.read(), make_kv(1))


def test_what_is_reserved_and_not_committed_is_gone_when_it_is_closed() -> None:
    tier = make_tier(1)
    header = TensorContent(make_key(1), make_kv(1), capture_position=0).header()
    passage = tier.reserve(header)
    assert passage is not None
    assert tier.reserve(header) is None
    with pytest.raises(StoreFullError, match="being written"):
        put(tier, 2)
    passage.close()
    assert tier.stats().used_bytes == 0
    assert put(tier, 2)
    tier.check_integrity()


def test_of_two_that_reserve_one_key_the_first_to_commit_wins() -> None:
    tier = make_tier(2)
    header = TensorContent(make_key(1), make_kv(1), capture_position=0).header()
    first, second = tier.reserve(header), tier.reserve(header)
    assert first is not None and second is not None
    assert tier.commit(second, None)
    assert not tier.commit(first, None)
    first.close()
    second.close()
    assert tier.stats().used_bytes == PAYLOAD_BYTES


def test_padding_is_zeros_whatever_lay_there() -> None:
    tier = make_tier(1)
    put(tier, 1)
    tier._listed[make_key(1)].extents.fill_(255)
    tier.drop(make_key(1))
    put(tier, 2)
    with opened(tier, 2) as file:
        assert all(not extent[file.header.layer_bytes :].any() for extent in file.extents())


def test_a_corrupt_copy_is_never_put_whole() -> None:
    tier, other = make_tier(1), make_tier(1)
    put(tier, 1)
    damage(tier, make_key(1), offset=PAYLOAD_BYTES - 1)
    with opened(tier, 1) as file, pytest.raises(CorruptPassageKVError, match="layer 2"):
        other.put(CopiedContent(file))
    assert other.stats().used_bytes == 0


def test_threads_share_one_tier(caplog: pytest.LogCaptureFixture) -> None:
    """Three threads put, read, drop and pin nine passages where three and a half fit: a hit is whole and right."""
    caplog.set_level(logging.WARNING)
    tier = GPUTier("cpu", budget_bytes=3 * PAYLOAD_BYTES + EXTENT_BYTES)
    errors: list[BaseException] = []

    def work(start: int) -> None:
        try:
            for step in range(150):
                number = (start + step * 5) % 9
                file = tier.open(make_key(number))
                if file is None:
                    put(tier, number)
                    continue
                with file:
                    pin = tier.pin(make_key(number))
                    assert torch.equal(file.read(), make_kv(number))
                    if pin is not None:
                        pin.release()
                if step % 7 == 0:
                    tier.drop(make_key(number))
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
    assert tier.stats().used_bytes == tier.stats().num_files * PAYLOAD_BYTES
