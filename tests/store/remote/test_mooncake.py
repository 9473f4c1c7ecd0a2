"""A Mooncake store: the contract of every tier, and members and masters that stop."""

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from kvblend.core.errors import InvalidRequestError, StoreFullError
from kvblend.store import NEVER, Deadline
from kvblend.store.content import TensorContent
from kvblend.store.remote import RemoteTier, remote_objects
from tests.store.remote.mooncake_server import FAULT, MooncakeServer, needs_mooncake
from tests.store.remote.remote_contract import AMPLE_S, DEADLINE_S, RemoteContract, fetch_in_time, until_it_answers
from tests.store.samples import make_key, make_kv
from tests.store.tier_contract import contains, content, delete, is_miss, keys, opened, put

REOPEN_S = 0.3


@needs_mooncake
class TestMooncake(RemoteContract):
    @pytest.fixture(autouse=True, scope="class")
    def running(self, request: pytest.FixtureRequest) -> Iterator[None]:
        with MooncakeServer() as server:
            request.cls.server = server
            yield

    @pytest.fixture(autouse=True)
    def empty(self, running: None) -> Iterator[None]:
        yield
        self.server.num_keys()


@pytest.fixture
def server() -> Iterator[MooncakeServer]:
    with MooncakeServer() as server:
        yield server


@pytest.mark.skipif(FAULT is None, reason="Mooncake can be loaded here")
def test_a_library_that_is_missing_is_named() -> None:
    with pytest.raises(InvalidRequestError, match=r"cannot be loaded: .*\.so.*libibverbs1|install kvblend\[mooncake\]"):
        remote_objects("mooncake://127.0.0.1:1")


@pytest.fixture
def tier(server: MooncakeServer) -> Iterator[RemoteTier]:
    tier = RemoteTier(server.objects(), reopen_s=REOPEN_S)
    yield tier
    tier.close()


@needs_mooncake
def test_a_member_that_is_gone_is_a_miss_and_never_corruption(
    server: MooncakeServer, tier: RemoteTier, caplog: pytest.LogCaptureFixture
) -> None:
    """Its passages can be put again where there is another."""
    caplog.set_level(logging.WARNING, "kvblend")
    put(tier, 1, 2)
    server.lose_member()
    for number in (1, 2):
        assert not tier.fetch_many([make_key(number)], Deadline.after(5.0))
    server.add_member()
    until = time.monotonic() + 120
    while contains(tier, 1):  # the master has yet to notice
        assert time.monotonic() < until
        time.sleep(0.1)
    assert put(tier, 1) and torch.equal(opened(tier, 1).read(), make_kv(1))
    assert not [record for record in caplog.records if "corrupt" in record.message or "deleted" in record.message]


@needs_mooncake
def test_a_stalled_member_costs_a_deadline_and_opens_the_breaker(
    server: MooncakeServer, tier: RemoteTier, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "kvblend")
    put(tier, 1, 2)
    assert fetch_in_time(tier, 1, 2, deadline_s=AMPLE_S) == keys(1, 2)
    server.stall()
    for _ in range(5):
        assert fetch_in_time(tier, 1, 2) == set()
        assert tier.lookup_many([make_key(1)], Deadline.after(DEADLINE_S)) == set()
    began = time.monotonic()
    assert fetch_in_time(tier, 1, deadline_s=AMPLE_S) == set()
    assert time.monotonic() - began < AMPLE_S / 2, "the breaker is not open"
    assert ["failed 3 times in a row" in record.message for record in caplog.records] == [True]
    server.go_on()
    until = time.monotonic() + 120  # calls under way keep their threads for half a minute
    while tier._breaker.is_open:
        assert time.monotonic() < until
        fetch_in_time(tier, 1)
        time.sleep(0.05)
    assert put(tier, 3) and torch.equal(opened(tier, 3).read(), make_kv(3))


@needs_mooncake
def test_a_dead_master_and_one_that_comes_back(server: MooncakeServer, tier: RemoteTier) -> None:
    put(tier, 1)
    server.kill()
    for _ in range(4):
        assert fetch_in_time(tier, 1) == set()
    with pytest.raises(OSError, match="is not asked now"):
        tier.put(content(2), NEVER)
    server.start()
    until = time.monotonic() + 120
    while True:
        try:
            assert tier.put(content(2), NEVER)
            break
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.2)
    assert is_miss(tier, 1)
    until_it_answers(tier, 2)


@needs_mooncake
def test_a_master_that_was_never_there_costs_no_more_than_a_try(tmp_path: Path) -> None:
    tier = RemoteTier(remote_objects("mooncake://127.0.0.1:1"))
    began = time.monotonic()
    assert fetch_in_time(tier, 1) == set()
    with pytest.raises(OSError, match="refused"):
        tier.put(content(1), NEVER)
    assert time.monotonic() - began < AMPLE_S / 2
    tier.close()


@needs_mooncake
def test_two_replicas_survive_a_member() -> None:
    """Until the master knows that it is gone a passage may be a miss: Mooncake asks one replica alone."""
    with MooncakeServer(num_members=2, num_replicas=2) as server:
        tier = RemoteTier(server.objects())
        put(tier, 1, 2, 3)
        server.lose_member()
        for number in (1, 2, 3):
            until_it_answers(tier, number)
            assert torch.equal(opened(tier, number).read(), make_kv(number))
        assert tier.variants("model-1", make_key(1).passage_id, NEVER) == keys(1)
        tier.close()


@needs_mooncake
def test_a_full_store_evicts_and_what_is_gone_is_listed_no_more(server: MooncakeServer, tier: RemoteTier) -> None:
    objects = server.objects()
    piece = memoryview(bytearray(8 << 20))
    names = [f"model-1/00/{number:064}/{number:064}.h0-1.v2.kv" for number in range(24)]
    stored = 0
    for name in names:
        try:
            stored += objects.put(name, piece)
        except OSError:
            time.sleep(0.2)  # the master evicts beside its calls
    left = objects.exist(names)
    assert stored > len(left) >= 3
    for name in names:
        assert objects.names_in(name.rsplit("/", 1)[0]) == ({name} & left)
    objects.close()


@needs_mooncake
def test_an_object_over_the_buffer_is_a_full_store(server: MooncakeServer) -> None:
    tier = RemoteTier(remote_objects(f"mooncake://127.0.0.1:{server.port}?buffer={1 << 20}"))
    with pytest.raises(StoreFullError, match="the mooncake tier has no room"):
        tier.put(TensorContent(make_key(1), make_kv(1, shape=(3, 2, 16384, 2, 8)), capture_position=0), NEVER)
    assert not tier._breaker.is_open and put(tier, 2)
    tier.close()


@needs_mooncake
def test_a_delete_reaches_what_no_name_lists(server: MooncakeServer, tier: RemoteTier) -> None:
    """As after a member's death that took the list alone."""
    put(tier, 1, 2)
    folder = make_key(1).variant.folder
    assert server.peer().remove(f"kvblend-names/{folder}/0", force=True) == 0
    assert tier.variants("model-1", make_key(1).passage_id, NEVER) == set() and contains(tier, 1)
    assert delete(tier, 1) == 1 and not contains(tier, 1) and contains(tier, 2)


@needs_mooncake
def test_many_names_of_a_passage_by_many_writers(server: MooncakeServer) -> None:
    """More than are asked for at once; none takes another's place."""
    own = [make_key(1, context=f"{number:064x}") for number in range(40)]
    clients = [server.objects() for _ in range(2)]
    with ThreadPoolExecutor(8) as threads:
        tasks = [
            threads.submit(client.put, key.file_name, memoryview(bytearray(10))) for key in own for client in clients
        ]
        for task in tasks:
            task.result()
    folder, gone = make_key(1).variant.folder, [own[3].file_name, own[20].file_name]
    assert all(client.names_in(folder) == {key.file_name for key in own} for client in clients)
    assert [client.delete(gone) for client in clients] == [2, 0]
    assert all(client.names_in(folder) == {key.file_name for key in own} - set(gone) for client in clients)
    assert clients[0].delete_beginning(folder, [f"{key.variant.name}." for key in own]) == 38
    assert server.num_keys() == 0, "names are left"
    for client in clients:
        client.close()


@needs_mooncake
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mooncake://host", "names no host:port of a master"),
        ("mooncake://host:port", "names no host:port of a master"),
        ("mooncake://host:1?buffer=1GB", "buffer='1GB' is no whole number from 1048576 on"),
        ("mooncake://host:1?replicas=0", "replicas='0' is no whole number from 1 on"),
        ("mooncake://host:1?size=1", "'size' is none of buffer, host, replicas, segment"),
    ],
)
def test_urls_that_are_none_are_refused(url: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        remote_objects(url)
