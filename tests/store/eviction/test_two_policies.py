"""Two processes on one folder, set to different policies: each evicts by its own, whatever the other has made."""

from pathlib import Path

import pytest

from kvblend.store import Deadline, PassageKVKey
from kvblend.store.content import TensorContent
from kvblend.store.eviction import policy_of
from kvblend.store.folder.disk_tier import DiskTier
from tests.store.samples import FILE_BYTES, make_key, make_kv

NUM_FILES = 6


def put(tier: DiskTier, key: PassageKVKey, number: int) -> None:
    tier.put(TensorContent(key, make_kv(number), capture_position=0))


@pytest.mark.parametrize(("first", "second"), [("s3-fifo", "lru"), ("lru", "s3-fifo"), ("s3-fifo", "cost-aware")])
def test_what_one_has_placed_the_other_evicts(tmp_path: Path, first: str, second: str) -> None:
    budget = NUM_FILES * FILE_BYTES
    one, other = (
        DiskTier(tmp_path / "disk", budget_bytes=budget, policy=policy_of(name))  # type: ignore[arg-type]
        for name in (first, second)
    )
    try:
        for number in range(NUM_FILES):
            put(one, make_key(number), number)
            for _ in range(3):  # what is used is spared, and stands in another queue
                one.touch_many([make_key(number)])
        put(one, make_key(NUM_FILES), NUM_FILES)
        for number in range(NUM_FILES + 1, 3 * NUM_FILES):
            put(other, make_key(number), number)
        last = [make_key(number) for number in range(2 * NUM_FILES, 3 * NUM_FILES)]
        assert other.lookup_many([make_key(3 * NUM_FILES - 1)], Deadline.after(10)) == {last[-1]}
        assert other.stats().used_bytes <= budget
        assert other.evict(budget) > 0 and not other.lookup_many(last, Deadline.after(10))
    finally:
        one.close()
        other.close()
