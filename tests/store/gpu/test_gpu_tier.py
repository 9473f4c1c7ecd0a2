"""The GPU tier, its arena in CPU memory."""

import logging
import threading

import pytest
import torch

from kvblend.core.errors import InvalidRequestError, StoreFullError
from kvblend.store import GPUTier
from kvblend.store.content import TensorContent
from tests.store.gpu.arena_samples import contains, held, opened, put
from tests.store.samples import CONTEXT, EXTENT_BYTES, SHAPE, make_key, make_kv
from tests.store.tier_contract import keys

PAYLOAD_BYTES = SHAPE[0] * EXTENT_BYTES


def make_tier(num_fit: int) -> GPUTier:
    return GPUTier("cpu", budget_bytes=num_fit * PAYLOAD_BYTES)


def put_layers(tier: GPUTier, number: int, num_layers: int) -> bool:
    return put(tier, number, shape=(num_layers, *SHAPE[1:]))


def test_a_hit_is_what_the_kernels_take_without_a_copy() -> None:
    tier = make_tier(2)
    assert not contains(tier, 1) and tier.open(make_key(1)) is None
    assert put(tier, 1) and contains(tier, 1)
    with opened(tier, 1) as file:
        assert (file.tier, file.num_bytes, file.header.key) == ("gpu", PAYLOAD_BYTES, make_key(1))
        staged = file.staged()
        staged.check(SHAPE[3], SHAPE[4], torch.device("cpu"))
        assert torch.equal(staged.payload, make_kv(1))
        assert staged.payload.data_ptr() == tier._listed[make_key(1)].rows.data_ptr()
        assert staged.payload.stride(0) * staged.payload.element_size() == EXTENT_BYTES


def test_the_least_recently_used_goes_first() -> None:
    tier = make_tier(3)
    for number in (1, 2, 3):
        put(tier, number)
    opened(tier, 1).close()
    put(tier, 4)
    assert held(tier) == keys(1, 3, 4)
    assert tier.evict(PAYLOAD_BYTES + 1) == 2 * PAYLOAD_BYTES
    assert held(tier) == keys(4)
    assert (tier.evict(1 << 40), tier.evict(1)) == (PAYLOAD_BYTES, 0)
    tier.check_integrity()


def test_what_is_open_is_neither_evicted_nor_overwritten() -> None:
    tier = make_tier(2)
    put(tier, 1)
    put(tier, 2)
    first, second = opened(tier, 1), opened(tier, 1)
    staged = second.staged()
    first.close()
    with pytest.raises(StoreFullError, match="only 12288 bytes are neither pinned nor in use, not 24576"):
        tier.evict(2 * PAYLOAD_BYTES)
    for number in (3, 4):
        put(tier, number)
    assert held(tier) == keys(1, 4)
    assert torch.equal(staged.payload, make_kv(1))
    with opened(tier, 4), pytest.raises(StoreFullError):
        put(tier, 5)
    second.close()
    put(tier, 5)
    put(tier, 6)
    assert held(tier) == keys(5, 6)
    tier.check_integrity()


@pytest.mark.parametrize("how", ["drop", "delete", "quarantine", "close"])
def test_what_is_gone_gives_its_bytes_back_when_it_is_closed(how: str, caplog: pytest.LogCaptureFixture) -> None:
    tier = make_tier(1)
    put(tier, 1)
    with opened(tier, 1) as file:
        if how == "drop":
            assert tier.drop(make_key(1)) and not tier.drop(make_key(1))
        elif how == "delete":
            assert tier.delete([make_key(1).variant]) == 1 and tier.delete([make_key(1).variant]) == 0
        elif how == "quarantine":
            assert file.quarantine() and not file.quarantine()
        else:
            tier.close()
        assert not contains(tier, 1)
        assert (tier.stats().num_files, tier.stats().used_bytes) == (0, PAYLOAD_BYTES)
        with pytest.raises(StoreFullError):
            put(tier, 2)
        assert torch.equal(file.staged().payload, make_kv(1))
    assert tier.stats().used_bytes == 0
    assert [record.levelname for record in caplog.records] == ["WARNING"] * (how == "quarantine")
    if how != "close":
        assert put(tier, 2)
    tier.check_integrity()


def test_delete_takes_every_head_range_of_a_variant() -> None:
    tier = make_tier(3)
    others = [make_key(1), make_key(1, head_start=2), make_key(1, context=CONTEXT[::-1])]
    for key in others:
        passage = tier.reserve(TensorContent(key, make_kv(1), capture_position=0).header)
        assert passage is not None and tier.commit(passage, None)
        passage.close()
    assert tier.delete([make_key(1).variant]) == 2
    assert held(tier) == {others[2]}


def test_room_is_made_side_by_side_and_what_makes_no_difference_stays() -> None:
    """In [1 1 2 3 3 4], 2 was used first and 1 next: two layers fit where 1 lay, so 2 need not go."""
    tier = GPUTier("cpu", budget_bytes=6 * EXTENT_BYTES)
    for number, num_layers in ((1, 2), (2, 1), (3, 2), (4, 1)):
        put_layers(tier, number, num_layers)
    for number in (2, 1, 3, 4):
        opened(tier, number).close()
    put_layers(tier, 5, 2)
    assert held(tier) == keys(2, 3, 4, 5)
    put_layers(tier, 6, 3)  # 2 and 3 lie side by side
    assert held(tier) == keys(4, 5, 6)
    tier.check_integrity()


def test_a_budget_is_rounded_down_to_whole_extents(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "kvblend.store.gpu.gpu_tier")
    tier = GPUTier("cpu", budget_bytes=2 * EXTENT_BYTES - 1)
    assert put_layers(tier, 1, 1)
    with pytest.raises(StoreFullError):
        put_layers(tier, 2, 2)
    assert "8192 bytes of one passage KV are over the gpu tier's 8191" in caplog.text


def test_another_kind_of_device_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="meta"):
        GPUTier("meta", budget_bytes=EXTENT_BYTES)


def test_what_is_reserved_is_found_once_it_is_committed() -> None:
    tier = make_tier(2)
    passage = tier.reserve(TensorContent(make_key(1), make_kv(1), capture_position=0).header)
    assert passage is not None and not contains(tier, 1)
    assert (tier.stats().num_files, tier.stats().used_bytes) == (0, PAYLOAD_BYTES)
    passage.staged().payload.copy_(make_kv(1))
    assert tier.commit(passage, None) and not tier.commit(passage, None)
    passage.close()
    with opened(tier, 1) as file:
        assert torch.equal(file.staged().payload, make_kv(1))


def test_what_is_reserved_and_not_committed_is_gone_when_it_is_closed() -> None:
    tier = make_tier(1)
    header = TensorContent(make_key(1), make_kv(1), capture_position=0).header
    passage = tier.reserve(header)
    assert passage is not None
    assert tier.reserve(header) is None
    passage.close()
    assert tier.stats().used_bytes == 0
    assert put(tier, 2)
    tier.check_integrity()


def test_of_two_that_reserve_one_key_the_first_to_commit_wins() -> None:
    tier = make_tier(2)
    header = TensorContent(make_key(1), make_kv(1), capture_position=0).header
    first, second = tier.reserve(header), tier.reserve(header)
    assert first is not None and second is not None
    assert tier.commit(second, None)
    assert not tier.commit(first, None)
    first.close()
    second.close()
    assert tier.stats().used_bytes == PAYLOAD_BYTES


def test_threads_share_one_tier(caplog: pytest.LogCaptureFixture) -> None:
    """Three threads put, use and drop nine passages where three and a half fit: a hit is whole and right."""
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
                    assert torch.equal(file.staged().payload, make_kv(number))
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
