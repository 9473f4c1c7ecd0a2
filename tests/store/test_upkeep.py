"""Quotas: of one owner, and of several together."""

from pathlib import Path

import pytest

from kvblend.store import TieredStore
from kvblend.store.upkeep import trim
from tests.store.samples import FILE_BYTES, make_key, make_kv


@pytest.fixture
def store(tmp_path: Path) -> TieredStore:
    """Three files of `a`, two of `b`, one of `other`, in one tier."""
    from kvblend.core.settings import Settings

    settings = Settings(home=tmp_path, cpu_bytes=0, disk_bytes=1 << 30, codec="raw")
    store = TieredStore.from_settings(settings)
    for number, owner in enumerate(["a", "a", "a", "b", "b", "other"]):
        store.put(make_key(number), make_kv(number), capture_position=0, owners=[owner])
    return store


def test_owners_share_a_quota_and_the_largest_gives_first(store: TieredStore) -> None:
    (tier,) = store.bounded
    assert trim(store, {"a", "b"}, 5 * FILE_BYTES) == 0
    assert trim(store, {"a", "b"}, 4 * FILE_BYTES) == FILE_BYTES
    assert tier.owned_bytes() == {"a": 2 * FILE_BYTES, "b": 2 * FILE_BYTES, "other": FILE_BYTES}
    assert trim(store, {"a", "b"}, 0) == 4 * FILE_BYTES
    assert tier.owned_bytes() == {"other": FILE_BYTES}


def test_one_owners_quota_is_its_own(store: TieredStore) -> None:
    (tier,) = store.bounded
    assert trim(store, {"b"}, FILE_BYTES) == FILE_BYTES
    assert tier.owned_bytes() == {"a": 3 * FILE_BYTES, "b": FILE_BYTES, "other": FILE_BYTES}
