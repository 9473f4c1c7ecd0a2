"""Passages written beside the engine's steps, and the ranks' outcomes."""

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from kvblend.core.errors import StoreFullError
from kvblend.store import DiskTier, PassageKVKey, StoredPassageKV, TieredStore
from kvblend.vllm_connector.scheduler.pending_encodes import PendingEncodes
from kvblend.vllm_connector.worker.host_copy import HostCopy
from kvblend.vllm_connector.worker.passage_writer import PassageWriter

KV = torch.arange(2 * 2 * 7 * 2 * 8, dtype=torch.float32).view(2, 2, 7, 2, 8)


class SlowStore(TieredStore):
    """A store on a disk that writes when it is told to."""

    go: threading.Event

    def put(self, key: PassageKVKey, kv: torch.Tensor, *, capture_position: int, owners: Sequence[str] = ()) -> str:
        assert self.go.wait(120)
        if capture_position == 13:
            raise StoreFullError("no room")
        return super().put(key, kv, capture_position=capture_position, owners=owners)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SlowStore]:
    store = SlowStore([DiskTier(tmp_path, budget_bytes=1 << 20)])
    store.go = threading.Event()
    with store:
        yield store


def key(number: int) -> PassageKVKey:
    return PassageKVKey("model", "0" * 64, f"{number:064x}", 0, 2)


def all_results(writer: PassageWriter, count: int) -> dict[str, str | None]:
    results: dict[str, str | None] = {}
    until = time.monotonic() + 120
    while len(results) < count and time.monotonic() < until:
        results |= dict(writer.take_results())
        time.sleep(0.005)
    return results


def test_a_commit_is_told_when_the_file_is_whole(store: SlowStore) -> None:
    writer = PassageWriter(store)
    writer.put("one", key(1), HostCopy(KV), capture_position=5, owners=("news",))
    assert writer.take_results() == [] and not store.lookup_many([key(1)])
    store.go.set()
    assert all_results(writer, 1) == {"one": None}
    file = store.open_many([key(1)])[key(1)]
    assert isinstance(file, StoredPassageKV)
    with file:
        assert (file.header.capture_position, file.header.owners) == (5, ("news",))
        assert torch.equal(file.read(), KV)
    writer.close()


def test_over_its_bound_it_fails_at_once_and_one_failure_is_not_the_next_ones(store: SlowStore) -> None:
    writer = PassageWriter(store, max_waiting_bytes=2 * KV.nbytes)
    writer.put("bad", key(1), HostCopy(KV), capture_position=13)
    writer.put("good", key(2), HostCopy(KV), capture_position=0)
    writer.put("over", key(3), HostCopy(KV), capture_position=0)
    refused = dict(writer.take_results())
    assert list(refused) == ["over"] and "over the bound of" in str(refused["over"])
    store.go.set()
    assert all_results(writer, 2) == {"bad": "no room", "good": None}
    writer.put("later", key(3), HostCopy(KV), capture_position=0)
    writer.close()  # what waits is written
    assert writer.take_results() == [("later", None)]
    assert store.lookup_many([key(3)]) == {key(3): "disk"}


def test_a_passage_is_whole_when_every_rank_has_written_its_own() -> None:
    pending = PendingEncodes(3)
    pending.begin("request", "report")
    assert pending.count("request", (None,)) is None and len(pending) == 1
    assert pending.count("request", ("no room",)) is None
    assert pending.count("request", (None,)) == ("report", "no room") and len(pending) == 0
    pending.begin("nobody asks", None)
    assert pending.count("nobody asks", (None, None, None)) is None and len(pending) == 0


def test_who_rests_goes_on_when_a_passage_is_written(store: SlowStore) -> None:
    """And at once where nothing is being written, or what was is not taken up yet."""
    writer = PassageWriter(store)
    began = time.monotonic()
    writer.rest(120)
    writer.put("one", key(1), HostCopy(KV), capture_position=0)
    writer.rest(0.05)
    assert writer.take_results() == [], "it is not written yet"
    threading.Timer(0.1, store.go.set).start()
    writer.rest(120)
    writer.rest(120)
    assert writer.take_results() == [("one", None)] and time.monotonic() - began < 60
    writer.close()
