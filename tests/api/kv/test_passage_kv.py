"""The service's view of the store beside engines that read the same tiers, and engines on other hosts."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvblend.api.kv.passage_kv import PassageKV, name_of
from kvblend.core.control import EngineInfo
from kvblend.core.settings import Settings
from kvblend.store import TieredStore
from tests.api.engine.test_control import INFO
from tests.store.samples import make_key, make_kv

KEY = make_key(0, num_heads=1)
NAME = name_of(KEY.variant)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    cpu_path, disk_path = tmp_path / "cpu", tmp_path / "disk"
    return Settings(home=tmp_path, cpu_path=cpu_path, disk_path=disk_path, cpu_bytes=1 << 20, disk_bytes=1 << 20)


@pytest.fixture
def store(settings: Settings) -> Iterator[TieredStore]:
    """It holds KEY on disk alone."""
    with TieredStore.from_settings(settings) as store:
        store.put(KEY, make_kv(0, shape=(2, 2, 5, 1, 8)), capture_position=0)
        assert store.move_down([KEY]) == {KEY}
        yield store


def told(*places: str) -> EngineInfo:
    return INFO.model_copy(update={"model_fingerprint": "model-1", "head_ranges": [(0, 1)], "places": list(places)})


def test_a_place_is_the_same_by_any_path_and_no_two_are(settings: Settings, store: TieredStore, tmp_path: Path) -> None:
    (tmp_path / "mounted").symlink_to(tmp_path / "disk")
    elsewhere = settings.model_copy(update={"cpu_bytes": 0, "disk_path": tmp_path / "mounted"})
    cpu, disk = store.places
    with TieredStore.from_settings(elsewhere) as other:
        assert other.places == [disk] and disk != cpu


@pytest.mark.parametrize(("of_host", "is_promoted"), [(True, True), (False, False), (None, True)])
async def test_kv_is_brought_near_where_an_engine_reads_it(
    store: TieredStore, of_host: bool | None, is_promoted: bool
) -> None:
    """An engine of an earlier version does not say where it reads: then it is on this host."""
    passage_kv = PassageKV(store)
    info = told() if of_host is None else told(*(store.places if of_host else ["another host's"]))
    assert passage_kv.is_near(info) is is_promoted
    assert await passage_kv.nearby(info, [NAME]) == {NAME}
    passage_kv.promote_soon(info, [NAME])
    while passage_kv._promotions:
        await next(iter(passage_kv._promotions))
    assert (store.lookup_many([KEY]) == {KEY: "cpu"}) is is_promoted


def test_what_an_engine_shares_may_be_its_slower_tier(store: TieredStore) -> None:
    """Then the service knows what lies near it, and brings nothing to the tier that only the service reads."""
    passage_kv, info = PassageKV(store), told(store.places[1])
    assert passage_kv.is_near(info)
    passage_kv.promote_soon(info, [NAME])
    assert not passage_kv._promotions
