"""Remote tiers on real servers: the contract of every tier, and what a server's faults may cost."""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from kvblend.cli.engine import free_port
from kvblend.core.errors import InvalidRequestError, StoreFullError
from kvblend.core.settings import Settings
from kvblend.store import NEVER, Deadline, PassageKVKey, TieredStore
from kvblend.store.remote import RemoteTier, remote_objects
from tests.store.remote.mooncake_server import MooncakeServer, needs_mooncake
from tests.store.remote.remote_contract import AMPLE_S, DEADLINE_S, RemoteContract, fetch_in_time, until_it_answers
from tests.store.remote.servers import AWS, S3Server, Server, ValkeyServer, make_cluster
from tests.store.samples import EXTENT_BYTES, FILE_BYTES, make_key, make_kv
from tests.store.store_samples import delete as delete_from_store
from tests.store.store_samples import put as put_in_store
from tests.store.store_samples import read, where
from tests.store.tier_contract import contains, content, delete, is_miss, opened, put

REOPEN_S = 0.3


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)


class TestValkey(RemoteContract):
    @pytest.fixture(autouse=True)
    def running(self, tmp_path: Path) -> Iterator[None]:
        with ValkeyServer(tmp_path) as self.server:
            yield


class TestS3(RemoteContract):
    @pytest.fixture(autouse=True, scope="class")
    def running(self, request: pytest.FixtureRequest) -> Iterator[None]:
        with S3Server() as server:
            request.cls.server = server
            yield

    @pytest.fixture(autouse=True)
    def empty(self, running: None) -> Iterator[None]:
        yield
        tier = RemoteTier(self.server.objects())
        for number in range(10):
            names = self.server.objects().names_in(make_key(number).variant.folder)
            self.server.objects().delete(names)
        tier.close()


@pytest.fixture(params=["valkey", "s3"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    with ValkeyServer(tmp_path) if request.param == "valkey" else S3Server() as server:
        yield server


@pytest.fixture(params=["valkey", "s3", pytest.param("mooncake", marks=needs_mooncake)])
def any_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    kinds = {"valkey": lambda: ValkeyServer(tmp_path), "s3": S3Server, "mooncake": MooncakeServer}
    with kinds[request.param]() as server:
        yield server


@pytest.fixture
def tier(server: Server) -> Iterator[RemoteTier]:
    tier = RemoteTier(server.objects(), reopen_s=REOPEN_S)
    yield tier
    tier.close()


@pytest.mark.parametrize("fault", ["dead", "stalled"])
def test_a_server_that_does_not_answer_costs_a_deadline_and_is_asked_again_later(
    server: Server, tier: RemoteTier, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "kvblend.store.remote")
    put(tier, 1, 2)
    assert fetch_in_time(tier, 1, 2, deadline_s=AMPLE_S) == {make_key(1), make_key(2)}
    server.kill() if fault == "dead" else server.stall()
    for _ in range(5):
        assert fetch_in_time(tier, 1, 2) == set()
        assert tier.lookup_many([make_key(1)], Deadline.after(DEADLINE_S)) == set()
    began = time.monotonic()
    assert fetch_in_time(tier, 1, deadline_s=AMPLE_S) == set()
    assert time.monotonic() - began < AMPLE_S / 2, "the breaker is not open"
    assert tier.is_shunned
    with pytest.raises(OSError, match="is not asked now"):
        tier.delete([make_key(1).variant], Deadline.after(AMPLE_S))
    assert len(caplog.records) == 1 and "failed 3 times in a row" in caplog.records[0].message
    if fault == "dead":
        server.start()
        until = time.monotonic() + 120
        while tier._breaker.is_open:
            assert time.monotonic() < until
            fetch_in_time(tier, 1)
            time.sleep(0.05)
    else:
        server.go_on()
        until_it_answers(tier, 1)
    assert len(caplog.records) == 2 and "answers again" in caplog.records[1].message
    assert put(tier, 3) and contains(tier, 3)


def test_who_has_no_time_left_is_no_failure_of_the_server(server: Server, tier: RemoteTier) -> None:
    """A request's lookup may have spent it all elsewhere."""
    put(tier, 1)
    for _ in range(5):
        assert tier.lookup_many([make_key(1)], Deadline.after(0.0)) == set()
        tier.fetch_many([make_key(1)], Deadline.after(0.0))
    assert not tier._breaker.is_open and fetch_in_time(tier, 1, deadline_s=AMPLE_S) == {make_key(1)}


def test_a_server_killed_twenty_times_serves_nothing_wrong(tmp_path: Path) -> None:
    """Writers and readers go on meanwhile; what was put and survived is right, and nothing else is."""
    with ValkeyServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as server:
        tier = RemoteTier(server.objects(), reopen_s=0.01)
        committed: set[int] = set()
        for kill in range(20):
            for number in range(kill * 3, kill * 3 + 3):
                try:
                    if tier.put(content(number), Deadline.after(AMPLE_S)):
                        committed.add(number)
                except OSError:
                    pass
                if number % 3 == 1:
                    server.kill()
            fetch_in_time(tier, *range(kill * 3 + 3))
            server.start()
        until_it_answers(tier, min(committed))
        for number in committed:
            with opened(tier, number) as file:
                assert torch.equal(file.read(), make_kv(number))
        assert len(committed) >= 20
        tier.close()


def test_a_full_server_is_a_full_store_and_goes_on_answering(tmp_path: Path) -> None:
    with ValkeyServer(tmp_path, "--maxmemory", "3mb", "--maxmemory-policy", "noeviction") as server:
        tier, number = RemoteTier(server.objects()), 0
        with pytest.raises(StoreFullError, match="the redis tier has no room"):
            while True:
                number += 1
                assert number < 1000
                tier.put(content(number), NEVER)
        assert fetch_in_time(tier, 1, deadline_s=AMPLE_S) == {make_key(1)}
        assert not tier._breaker.is_open
        tier.close()


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "another passage's"])
def test_an_object_that_is_none_is_deleted(any_server: Server, damage: str) -> None:
    server = any_server
    tier = RemoteTier(server.objects())
    put(tier, 1, 2)
    data = {
        "truncated": server.read(make_key(1).file_name)[: FILE_BYTES - EXTENT_BYTES],
        "empty": b"",
        "foreign": b"not ours" * 2000,
        "another passage's": server.read(make_key(2).file_name),
    }
    server.overwrite(make_key(1).file_name, data[damage])
    assert is_miss(tier, 1) and not contains(tier, 1)
    assert put(tier, 1) and torch.equal(opened(tier, 1).read(), make_kv(1))
    tier.close()


def test_a_store_shares_by_a_remote_tier_and_keeps_copies_near(any_server: Server, tmp_path: Path) -> None:
    """One host writes, another reads byte for byte; a delete reaches the remote, and needs it."""
    server = any_server
    stores = []
    for host in ("a", "b"):
        settings = Settings(
            codec="raw",
            cpu_path=tmp_path / host / "cpu",
            cpu_bytes=1 << 20,
            disk_path=tmp_path / host / "disk",
            disk_bytes=1 << 20,
            remote=server.url,
            write="remote",
        )
        stores.append(TieredStore.from_settings(settings))
    one, other = stores
    assert put_in_store(one, 1, 2) == [one.remotes[0].name] * 2
    assert where(other, 1) == [one.remotes[0].name]
    with read(other, 1) as file:
        assert torch.equal(file.read(), make_kv(1))
    other._writer.drain()
    assert where(other, 1) == ["cpu"]
    name = make_key(1).file_name
    assert (tmp_path / "b/cpu" / name).read_bytes() == (tmp_path / "a/disk" / name).read_bytes() == server.read(name)
    assert delete_from_store(other, 1) == 2
    assert is_miss(one.remotes[0], 1)
    server.kill()
    with pytest.raises(OSError):
        delete_from_store(one, 2)
    assert where(one, 2) == [None]
    for store in stores:
        store.close()


def test_what_a_lookup_finds_far_away_is_brought_near(tmp_path: Path) -> None:
    """Before whoever asked fetches it: once, and only what lies nowhere nearer."""
    with ValkeyServer(tmp_path) as server:
        far = RemoteTier(server.objects())
        put(far, 1, 2)
        settings = Settings(
            codec="raw",
            cpu_path=tmp_path / "cpu",
            cpu_bytes=1 << 20,
            disk_path=tmp_path / "disk",
            disk_bytes=1 << 20,
            remote=f"redis://127.0.0.1:{server.port}",
        )
        with TieredStore.from_settings(settings) as store:
            put_in_store(store, 2)
            for _ in range(3):
                store.prefetch(store.lookup_many([make_key(1), make_key(2), make_key(3)]))
            store._writer.drain()
            assert where(store, 1, 2, 3) == ["cpu", "cpu", None]
            assert [tier.num_files for tier in store.stats()][:2] == [2, 1]
        far.close()


def test_write_behind_to_a_remote_that_a_put_need_not_wait_for(tmp_path: Path) -> None:
    with ValkeyServer(tmp_path) as server:
        settings = Settings(
            codec="raw",
            cpu_bytes=0,
            disk_path=tmp_path / "disk",
            disk_bytes=1 << 20,
            remote=f"redis://127.0.0.1:{server.port}",
        )
        with TieredStore.from_settings(settings) as store:
            assert put_in_store(store, 1) == ["disk"]
            store._writer.drain()
            assert contains(store.remotes[0], 1)


def test_a_password_and_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ValkeyServer(tmp_path, "--requirepass", "secret-one") as server:
        url = f"redis://127.0.0.1:{server.port}/0"
        right, wrong = (RemoteTier(remote_objects(url, password=word)) for word in ("secret-one", "secret-two"))
        assert put(right, 1) and fetch_in_time(wrong, 1) == set()
        with pytest.raises(OSError, match="AuthenticationError"):
            wrong.put(content(2), NEVER)
        for _ in range(3):
            fetch_in_time(wrong, 1)
        assert "secret" not in caplog.text and "secret" not in right.location
        right.close()
        wrong.close()


def test_a_user_of_its_own(tmp_path: Path) -> None:
    """ACL: one who may use our keys and no others."""
    rule = ["--user", "default", "off", "--user", "kv", "on", ">secret", "~kvblend:*", "+@all"]
    with ValkeyServer(tmp_path, *rule) as server:
        tier = RemoteTier(remote_objects(f"redis://127.0.0.1:{server.port}/0", username="kv", password="secret"))
        assert put(tier, 1, 2) and contains(tier, 2) and delete(tier, 1, 2) == 2
        tier.close()


def test_a_cluster(tmp_path: Path) -> None:
    """Three masters: passages in different slots, all of one passage in one; a dead master costs its own alone."""
    with ExitStack() as closing:
        nodes, bus_ports = [], [free_port() for _ in range(3)]
        for number, bus_port in enumerate(bus_ports):
            folder = tmp_path / str(number)
            folder.mkdir()
            options = ["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no"]
            nodes.append(closing.enter_context(ValkeyServer(folder, *options, "--cluster-port", str(bus_port))))
        make_cluster([node.port for node in nodes], first_bus_port=bus_ports[0])
        tier = RemoteTier(remote_objects(f"redis://127.0.0.1:{nodes[0].port}?cluster=1"), reopen_s=REOPEN_S)
        numbers = range(12)
        assert put(tier, *numbers)
        assert fetch_in_time(tier, *numbers, deadline_s=AMPLE_S) == set(map(make_key, numbers))
        assert tier.lookup_many([make_key(number) for number in (*numbers, 99)], NEVER) == set(map(make_key, numbers))
        assert delete(tier, *range(6)) == 6
        nodes[2].kill()
        left = set[PassageKVKey]()
        for number in range(6, 12):
            left |= fetch_in_time(tier, number, deadline_s=2.0)
            time.sleep(REOPEN_S)
        assert left
        tier.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://user:hunter2@127.0.0.1/0", "with credentials in its address"),
        ("ftp://host/x", "'ftp' is no remote tier; there are redis://, rediss://, s3://, mooncake://"),
        ("s3:///prefix", "names no bucket"),
        ("redis://host?clusters=1", "'clusters' is none of cluster, ssl_ca_certs, ssl_certfile, ssl_keyfile"),
    ],
)
def test_urls_that_are_none_are_refused(url: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        remote_objects(url)
    assert "hunter2" not in str(caught.value)
