"""The tier of what peers hold: the contract of every tier, and how a store uses it."""

import logging
import random
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from kvblend.core.errors import InvalidRequestError
from kvblend.core.rest import TierStats
from kvblend.store import NEVER, Deadline, PassageKVKey, StoredPassageKV, Tier, TieredStore, Variant
from kvblend.store.content import PassageKVContent
from kvblend.store.peers import PeerTier
from tests.store.peers.hosts import AMPLE_S, DEADLINE_S, LARGE, Host, MakeHost, fetch_in_time, until
from tests.store.samples import make_key, make_kv
from tests.store.store_samples import delete as delete_from_store
from tests.store.store_samples import flip, read, where
from tests.store.store_samples import put as put_in_store
from tests.store.tier_contract import TierContract, content, is_miss, keys, opened, put


class SharedTier(Tier):
    """What one host puts, and another reads and deletes."""

    def __init__(self, one: Host, other: Host) -> None:
        self.one, self.peers = one, other.peers
        self.name, self.location = self.peers.name, self.peers.location

    def put(self, content: PassageKVContent, deadline: Deadline) -> bool:
        return self.one.cpu_tier.put(content, deadline)

    def lookup_many(self, keys: Collection[PassageKVKey], deadline: Deadline) -> set[PassageKVKey]:
        return self.peers.lookup_many(keys, deadline)

    def fetch_many(self, keys: Collection[PassageKVKey], deadline: Deadline) -> Mapping[PassageKVKey, StoredPassageKV]:
        return self.peers.fetch_many(keys, deadline)

    def delete(self, variants: Collection[Variant], deadline: Deadline) -> int:
        return self.peers.delete(variants, deadline)

    def variants(self, model_fingerprint: str, passage_id: str, deadline: Deadline) -> set[PassageKVKey]:
        return self.peers.variants(model_fingerprint, passage_id, deadline)

    def stats(self) -> TierStats:
        return self.peers.stats()

    def close(self) -> None:
        """The hosts close."""


class TestPeers(TierContract):
    counts = False

    @pytest.fixture(autouse=True)
    def closing(self) -> Iterator[None]:
        with ExitStack() as self.hosts:
            yield

    def make_tier(self, folder: Path, *, budget_bytes: int) -> Tier:
        one = self.hosts.enter_context(Host(folder / "one", cpu_bytes=budget_bytes))
        other = self.hosts.enter_context(Host(folder / "other", one, serves=False))
        return SharedTier(one, other)

    def damage(self, tier: Tier, key: PassageKVKey, *, offset: int) -> None:
        assert isinstance(tier, SharedTier)
        flip(tier.one.settings.cpu_path / key.file_name, offset)

    def test_a_corrupt_header_is_a_miss(self, tier: Tier, caplog: pytest.LogCaptureFixture) -> None:
        """The peer finds it, quarantines it and logs that, when it opens it."""
        put(tier, 1)
        self.damage(tier, make_key(1), offset=40)
        assert is_miss(tier, 1) and not tier.lookup_many(keys(1), NEVER)
        assert caplog.records == []
        assert put(tier, 1)
        assert torch.equal(opened(tier, 1).read(), make_kv(1))


def test_a_store_reads_what_a_peer_has_and_keeps_a_copy_near(make_host: MakeHost, tmp_path: Path) -> None:
    """Byte for byte; from the peer's disk, too. A delete by either leaves no byte at any of three."""
    one = make_host("one")
    other = make_host("other", one)
    third = make_host("third", one, other)
    assert put_in_store(one.store, 1, 2) == ["disk", "disk"]
    one.store.bounded[0].delete([make_key(2).variant], NEVER)
    for number in (1, 2):
        assert where(other.store, number) == ["peers"]
        with read(other.store, number) as file:
            assert file.tier == "peers" and torch.equal(file.read(), make_kv(number))
    other.store._writer.drain()
    assert where(other.store, 1, 2) == ["cpu", "cpu"]
    name = make_key(1).file_name
    assert (tmp_path / "other/cpu" / name).read_bytes() == (tmp_path / "one/disk" / name).read_bytes()
    assert fetch_in_time(third.peers, [1, 2], deadline_s=AMPLE_S) == keys(1, 2)
    assert delete_from_store(third.store, 1) == 3
    for host in (one, other, third):
        assert where(host.store, 1) == [None]
    assert not list(tmp_path.rglob(f"*{make_key(1).passage_id}*/*"))


def test_a_put_waits_for_no_peer_and_counts_none(make_host: MakeHost, tmp_path: Path) -> None:
    one = make_host("one")
    other = make_host("other", one)
    with pytest.raises(OSError, match="read alone"):
        other.peers.put(content(1), NEVER)
    assert put_in_store(other.store, 1) == ["disk"]
    other.store._writer.drain()
    assert where(one.store, 1) == [None]
    put_in_store(one.store, 2)
    assert other.store.committed_many([make_key(1), make_key(2)]) == keys(1)
    with pytest.raises(InvalidRequestError, match="no remote tier that is written"):
        TieredStore.from_settings(other.settings.model_copy(update={"write": "remote"}))


@pytest.mark.parametrize("way", ["kept near", "promoted"])
def test_what_a_host_has_put_itself_stays_when_a_peer_loses_it(
    make_host: MakeHost, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that was under way finds the host's own file, and is none that a delete at the peer could have missed."""
    one = make_host("one")
    other = make_host("other", one)
    one.put(1)
    ((key, file),) = other.peers.fetch_many(keys(1), NEVER).items()

    def lose() -> None:
        other.put(1)
        one.cpu_tier.delete([key.variant], NEVER)

    if way == "kept near":
        lose()
        other.store._writer.keep_near(file, other.peers)
        other.store._writer.drain()
    else:
        fetch = PeerTier.fetch_many

        def fetch_and_lose(tier: PeerTier, wanted: Collection[PassageKVKey], deadline: Deadline) -> object:
            files = fetch(tier, wanted, deadline)
            lose()
            return files

        monkeypatch.setattr(PeerTier, "fetch_many", fetch_and_lose)
        assert other.store.promote_many([key]) == {key}
    assert where(other.store, 1) == ["cpu"]


def test_what_was_deleted_is_not_fetched_back_from_a_peer_that_wrote_it_late(make_host: MakeHost) -> None:
    """A copy that was under way when its passage was deleted is not there for others, who would keep theirs."""
    one = make_host("one")
    other = make_host("other", one)
    one.put(1)
    assert other.peers.delete([make_key(1).variant], NEVER) == 1
    one.put(1)
    assert fetch_in_time(other.peers, [1], deadline_s=AMPLE_S) == set()
    assert other.peers.lookup_many(keys(1), NEVER) == set()
    assert other.peers.variants("model-1", make_key(1).passage_id, NEVER) == set()
    assert where(one.store, 1) == ["cpu"]


def test_a_host_in_its_own_list_asks_the_others_and_is_told_of_deletes(make_host: MakeHost) -> None:
    """All hosts may have the same settings."""
    one = make_host("one")
    port = one.port + 1 if one.port < 65535 else one.port - 1
    other = make_host("other", port=port, remote=f"nixl://{one.address},127.0.0.1:{port}")
    one.put(1)
    other.put(2)
    assert other.peers.lookup_many(keys(1, 2), NEVER) == keys(1)
    assert fetch_in_time(other.peers, [1, 2], deadline_s=AMPLE_S) == keys(1)
    assert other.peers.delete([make_key(1).variant, make_key(2).variant], NEVER) == 2


def test_what_one_peer_has_lost_is_fetched_from_another(make_host: MakeHost) -> None:
    """It was found at the one not long ago; another has it since."""
    one, two = make_host("one"), make_host("two")
    other = make_host("other", one, two)
    one.put(1, 2)
    assert other.peers.lookup_many(keys(1, 2, 3), NEVER) == keys(1, 2)
    one.cpu_tier.delete([make_key(1).variant], NEVER)
    two.put(1, 3)
    assert fetch_in_time(other.peers, [1, 2, 3], deadline_s=AMPLE_S) == keys(1, 2, 3)


def test_more_than_a_peer_lends_at_a_time(make_host: MakeHost) -> None:
    """50 files of 6.3 MB, by a ring of 256 MiB: what is read is given back, and the rest is lent."""
    one = make_host("one", cpu_bytes=1 << 29)
    other = make_host("other", one)
    one.put(*range(50), shape=LARGE)
    until(lambda: len(fetch_in_time(other.peers, range(50), shape=LARGE, deadline_s=9.0)) >= 40)  # own ring's room
    assert fetch_in_time(other.peers, range(8), shape=LARGE, deadline_s=AMPLE_S) == keys(*range(8))


@pytest.mark.parametrize("token", ["another token", None])
def test_another_token_is_refused_on_both_sides(
    make_host: MakeHost, token: str | None, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    one = make_host("one", token="the right token")
    other = make_host("other", one, token=token)
    one.put(1)
    for _ in range(4):
        assert fetch_in_time(other.peers, [1]) == set()
        assert other.peers.lookup_many(keys(1), Deadline.after(DEADLINE_S)) == set()
    with pytest.raises(OSError, match="may be there still at peers"):
        other.peers.delete([make_key(1).variant], NEVER)
    assert where(one.store, 1) == ["cpu"]
    said = capfd.readouterr().err
    assert "has another KVBLEND_PEER_TOKEN, or none" in said and "127.0.0.1 are refused" in said
    assert "right token" not in said + caplog.text and "another token" not in said.replace("has another token", "")


def test_several_threads_read_from_two_peers_at_once(make_host: MakeHost) -> None:
    """Each gets all of what it asks for, and right."""
    one, two = make_host("one"), make_host("two")
    other = make_host("other", one, two)
    one.put(*range(12))
    two.put(*range(8, 20))

    def read_some(seed: int) -> int:
        chance = random.Random(seed)
        num_came = 0
        for _ in range(25):
            numbers = chance.sample(range(22), 8)
            came = fetch_in_time(other.peers, numbers, deadline_s=AMPLE_S)
            assert came == keys(*[number for number in numbers if number < 20])
            num_came += len(came)
        return num_came

    with ThreadPoolExecutor(4) as threads:
        assert min(threads.map(read_some, range(4))) > 100
