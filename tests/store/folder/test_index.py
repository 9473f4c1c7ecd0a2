"""A folder tier's index: it applies every policy as they all are applied, and no step of it looks at every file."""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings

from kvblend.store import DiskTier, TieredStore
from kvblend.store.eviction import LRU, S3FIFO, EvictionPolicy
from kvblend.store.folder.index import INDEX_NAME, FolderIndex, IndexedFile
from tests.store.eviction.index_contract import POLICIES, STEPS, Step, check_against_model
from tests.store.samples import make_key, make_kv


class AsContract:
    """A folder's index, each call in a transaction of its own; names have a prefix that quarantined ones have not."""

    def __init__(self, index: FolderIndex) -> None:
        self.index = index

    @property
    def used_bytes(self) -> int:
        with self.index.transaction() as index:
            return index.totals().used_bytes

    def put(self, key: str, num_bytes: int, cost: float) -> None:
        with self.index.transaction() as index:
            index.add(IndexedFile(key, "whole", num_bytes, used_ns=0), cost=cost)

    def use(self, key: str) -> list[str]:
        with self.index.transaction() as index:
            return index.use([key])

    def remove(self, key: str) -> None:
        with self.index.transaction() as index:
            index.forget(key)

    def pin(self, key: str, *, pinned: bool) -> None:
        with self.index.transaction() as index:
            index.pin(key, pinned=pinned)

    def evict(self, num_bytes: int) -> list[str]:
        with self.index.transaction() as index:
            victims = [file.name for file in index.choose(num_bytes)]
            for name in victims:
                index.forget(name, evicted=True)
        return victims


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
@settings(deadline=None, max_examples=40)
@given(steps=STEPS)
def test_it_applies_policies_as_the_contract_says(policy: EvictionPolicy, steps: list[Step]) -> None:
    with TemporaryDirectory() as folder:
        indexes: list[FolderIndex] = []

        def make(policy: EvictionPolicy) -> AsContract:
            indexes.append(FolderIndex(Path(folder), policy, lambda index: None))
            return AsContract(indexes[-1])

        check_against_model(make, policy, steps)
        indexes[0].close()


@pytest.fixture
def index(tmp_path: Path) -> Iterator[FolderIndex]:
    with closing(FolderIndex(tmp_path, LRU(), lambda index: None)) as index:
        yield index


def test_no_step_scans(index: FolderIndex) -> None:
    """SQLite's own plans: of what is done while requests run, nothing looks at every row."""
    statements: list[str] = []
    with index.transaction() as inside:
        for number in range(50):
            inside.add(IndexedFile(f"m/{number:03}.kv", "whole", 10, number, owner="news"), cost=1.0)
    index._connection.set_trace_callback(statements.append)
    with index.transaction() as inside:
        inside.use(["m/003.kv", "m/999.kv"])
        (
            inside.totals(),
            inside.owned_bytes(),
            inside.unusual("writing"),
            inside.under("m/00"),
            inside.page("m/01", 5, ending=".kv"),
        )
        inside.add(IndexedFile("m/new.kv", "whole", 10, 0), cost=1.0)
        for file in [*inside.choose(15), *inside.choose(15, owner="news")]:
            inside.forget(file.name, evicted=True)
        inside.pin("m/004.kv", pinned=True)
    index._connection.set_trace_callback(None)
    planned = [text for text in statements if text.split()[0] in ("SELECT", "UPDATE", "DELETE")]
    assert len(planned) > 20
    for statement in planned:
        plan = index._connection.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
        scans = [row[3] for row in plan if row[3].startswith("SCAN") and "totals" not in row[3]]
        assert not scans, (statement, scans)


def test_what_raises_changes_nothing(index: FolderIndex) -> None:
    with pytest.raises(KeyError), index.transaction() as inside:
        inside.add(IndexedFile("a", "whole", 10, 0), cost=1.0)
        raise KeyError
    with index.transaction() as inside:
        assert inside.get("a") is None and inside.totals().used_bytes == 0


def test_another_policy_takes_over_in_the_order_of_uses(tmp_path: Path) -> None:
    with closing(FolderIndex(tmp_path, LRU(), lambda index: None)) as index, index.transaction() as inside:
        for number in (3, 1, 2):
            inside.add(IndexedFile(str(number), "whole", 10, used_ns=number), cost=1.0)
    with closing(FolderIndex(tmp_path, S3FIFO(), lambda index: None)) as index, index.transaction() as inside:
        assert [file.name for file in inside.choose(20)] == ["1", "2"]


def test_a_database_of_another_schema_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with closing(FolderIndex(tmp_path, LRU(), lambda index: None)) as index:
        index._connection.execute("PRAGMA user_version = 99")
    filled: list[FolderIndex] = []
    with closing(FolderIndex(tmp_path, LRU(), filled.append)) as index:
        assert filled == [index] and (tmp_path / INDEX_NAME).exists()
    assert "schema version 99" in caplog.text


def test_an_index_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / INDEX_NAME).mkdir()
    with pytest.raises(OSError, match="the index cannot be used"):
        FolderIndex(tmp_path, LRU(), lambda index: None)


def test_a_use_is_counted_without_a_change(tmp_path: Path) -> None:
    """Soon, for other processes to see: what is used and nothing else is done must not look idle."""
    with (
        TieredStore([DiskTier(tmp_path / "kv", budget_bytes=1 << 20)]) as store,
        TieredStore([DiskTier(tmp_path / "kv", budget_bytes=1 << 20)]) as other,
    ):
        store.put(make_key(1), make_kv(1), capture_position=0)
        (before,) = other.bounded[0].all_entries()
        store.open_many([make_key(1)])[make_key(1)].close()
        deadline = time.monotonic() + 120
        while next(iter(other.bounded[0].all_entries())).num_uses == before.num_uses:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (after,) = other.bounded[0].all_entries()
        assert after.num_uses == before.num_uses + 1 and after.used_ns > before.used_ns


def test_evictions_are_counted_by_all_processes_and_remain(tmp_path: Path) -> None:
    """With how long each file had not been used; what is deleted is none."""
    tier = DiskTier(tmp_path / "kv", budget_bytes=1 << 20)
    with TieredStore([tier]) as store:
        for number in (1, 2, 3):
            store.put(make_key(number), make_kv(number), capture_position=0)
        store.delete([make_key(3).variant])
        assert (tier.stats().num_evicted, tier.stats().evicted_idle_s) == (0, 0.0)
        time.sleep(0.2)
        before = time.monotonic()
        assert store.evict("disk", 1) > 0
        assert tier.stats().num_evicted == 1
        assert 0.2 <= tier.stats().evicted_idle_s < 60 + time.monotonic() - before
    again = DiskTier(tmp_path / "kv", budget_bytes=1 << 20)
    with TieredStore([again]) as store:
        assert store.evict("disk", 1) > 0
        assert again.stats().num_evicted == 2 and again.stats().evicted_idle_s >= 0.4
