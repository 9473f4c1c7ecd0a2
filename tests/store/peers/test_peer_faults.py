"""What a peer's faults may cost, and that nothing wrong is ever served."""

import asyncio
import logging
import random
import socket
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import torch

from kvblend.core.errors import CorruptPassageKVError
from kvblend.store import NEVER, Deadline
from kvblend.store.peers.addresses import Address
from kvblend.store.peers.host_folder import process_id
from kvblend.store.peers.peer import Fetched, Peer
from kvblend.store.peers.peer_link import PeerLink
from kvblend.store.peers.ring import Ring
from tests.store.peers.hosts import AMPLE_S, LARGE, Host, MakeHost, fetch_in_time, until
from tests.store.samples import make_key, make_kv
from tests.store.tier_contract import keys

NUMBERS = range(8)
"""Of 6.3 MB each: they take some 100 ms on their way."""


@contextmanager
def in_a_thread(work: object) -> Iterator[None]:
    thread = threading.Thread(target=work)  # type: ignore[arg-type]
    thread.start()
    yield
    thread.join()


def test_a_peer_killed_again_and_again_while_it_is_read(make_host: MakeHost) -> None:
    """It is started again each time, under its address, and read again; no fetch is wrong or late."""
    chance = random.Random(7)
    one = make_host("one")
    other = make_host("other", one)
    one.put(*NUMBERS, shape=LARGE)
    num_cut = 0
    for _ in range(20):
        until(lambda: len(other.peers.fetch_many(keys(*NUMBERS), Deadline.after(AMPLE_S))) == len(NUMBERS))

        def kill(delay_s: float = chance.random() * 0.06) -> None:
            time.sleep(delay_s)
            one.kill()

        with in_a_thread(kill):
            came = fetch_in_time(other.peers, NUMBERS, shape=LARGE)
        num_cut += len(came) < len(NUMBERS)
        if num_cut == 2:
            break
    assert num_cut == 2


async def test_what_had_come_of_a_peer_that_is_killed_is_kept_and_given_back(make_host: MakeHost) -> None:
    """More files than it lends at a time, most of it lent already: some have come when the rest is asked for."""
    one = make_host("one", cpu_bytes=1 << 29)
    one.put(*range(60), shape=LARGE)
    names = [make_key(number).file_name for number in range(60)]
    lent, names = names[:36], names[36:]
    ring = Ring(1 << 29, lease_s=10.0)
    num_cut = 0
    for _ in range(20):
        await asyncio.to_thread(until, lambda: is_listening(one))
        address, pid = Address("127.0.0.1", one.port), one.pid
        link = await PeerLink.open(address, "a token", ring)
        await link.ask("fetch", Deadline.after(60.0), names=lent)
        peer = Peer(address, "a token", ring, own_hosts=[])
        fetched = Fetched()

        async def kill(came: Collection[str] = fetched.came) -> None:
            while not came:  # noqa: ASYNC110 (at the first moment in which some have)
                await asyncio.sleep(0)
            one.kill()

        killing = asyncio.create_task(kill())
        with suppress(OSError):
            await peer.fetch(names, Deadline.after(60.0), fetched)
        was_killed = not killing.cancel()
        peer.close()
        link.close()
        await asyncio.sleep(0.1)  # what was under way fails
        num_cut += 0 < len(fetched.came) < len(names)
        for start, num_bytes in fetched.came.values():
            assert bytes(ring.view(start, 7)) == b"KVBLEND" and num_bytes > 1 << 20
            ring.give_back(start)
        assert ring.used_bytes == 0
        if num_cut == 2:
            break
        if was_killed:
            await asyncio.to_thread(until, partial(is_another, one, pid))
    assert num_cut == 2
    ring.close()


@pytest.mark.parametrize("moment", ["before", "while it is read"])
def test_a_stalled_peer_costs_a_deadline_three_times_and_goes_on(
    make_host: MakeHost, moment: str, capfd: pytest.CaptureFixture[str]
) -> None:
    one = make_host("one")
    other = make_host("other", one)
    one.put(*NUMBERS, shape=LARGE)
    assert fetch_in_time(other.peers, NUMBERS, shape=LARGE, deadline_s=AMPLE_S) == keys(*NUMBERS)
    if moment == "before":
        one.stall()
    else:

        def stall() -> None:
            time.sleep(0.03)
            one.stall()

        with in_a_thread(stall):
            fetch_in_time(other.peers, NUMBERS, shape=LARGE)
    for _ in range(4):
        assert fetch_in_time(other.peers, NUMBERS, shape=LARGE) == set()
    until(lambda: "failed 3 times in a row" in capfd.readouterr().err)
    began = time.monotonic()
    for _ in range(20):
        fetch_in_time(other.peers, NUMBERS, shape=LARGE, deadline_s=AMPLE_S)
    assert time.monotonic() - began < AMPLE_S / 2, "requests pay for it still"
    one.go_on()
    until(lambda: len(fetch_in_time(other.peers, NUMBERS, shape=LARGE, deadline_s=AMPLE_S)) == len(NUMBERS))
    said = capfd.readouterr().err
    assert said.count("answers again") == 1 and "in a row" not in said


def test_who_has_no_time_left_is_nobodys_failure(make_host: MakeHost, capfd: pytest.CaptureFixture[str]) -> None:
    """A request's lookup may have spent it all elsewhere."""
    one = make_host("one")
    other = make_host("other", one)
    one.put(1)
    for _ in range(5):
        assert fetch_in_time(other.peers, [1], deadline_s=0.0) == set()
        assert other.peers.variants("model-1", make_key(1).passage_id, Deadline.after(0.0)) == set()
    assert fetch_in_time(other.peers, [1], deadline_s=AMPLE_S) == keys(1)
    assert "in a row" not in capfd.readouterr().err


def test_a_peer_that_is_restarted_elsewhere_under_its_address(make_host: MakeHost) -> None:
    one = make_host("one")
    other = make_host("other", one)
    one.put(1)
    assert fetch_in_time(other.peers, [1], deadline_s=AMPLE_S) == keys(1)
    one.kill_for_good()
    for _ in range(5):
        assert fetch_in_time(other.peers, [1]) == set()
    new = make_host("new", port=one.port)
    new.put(2)
    until(lambda: fetch_in_time(other.peers, [2], deadline_s=AMPLE_S) == keys(2))
    assert fetch_in_time(other.peers, [1, 2], deadline_s=AMPLE_S) == keys(2)


def test_of_two_peers_that_hold_all_one_is_dead(make_host: MakeHost, capfd: pytest.CaptureFixture[str]) -> None:
    """Requests go on within their deadline; the log says it once."""
    one, two = make_host("one"), make_host("two")
    other = make_host("other", one, two)
    for host in (one, two):
        host.put(*NUMBERS)
    assert fetch_in_time(other.peers, NUMBERS, deadline_s=AMPLE_S) == keys(*NUMBERS)
    one.kill_for_good()
    for _ in range(20):
        assert fetch_in_time(other.peers, NUMBERS, deadline_s=AMPLE_S) == keys(*NUMBERS)
        assert other.peers.lookup_many(keys(*NUMBERS), Deadline.after(AMPLE_S)) == keys(*NUMBERS)
    with pytest.raises(OSError, match=f"may be there still at peers: {one.address}"):
        other.peers.delete([make_key(0).variant], NEVER)
    assert two.cpu_tier.lookup_many(keys(0), NEVER) == set(), "the other peer deletes all the same"
    assert capfd.readouterr().err.count("failed 3 times in a row") == 1
    assert 3 <= other.peers.num_failures <= 6  # as metrics have it


def test_of_two_peers_one_is_stalled(make_host: MakeHost) -> None:
    """A fetch from the stalled one leaves half of its time for the other."""
    one, two = make_host("one"), make_host("two")
    other = make_host("other", one, two)
    for host in (one, two):
        host.put(*NUMBERS)
    assert fetch_in_time(other.peers, NUMBERS, deadline_s=AMPLE_S) == keys(*NUMBERS)
    one.stall()
    num_came = sum(len(fetch_in_time(other.peers, NUMBERS, deadline_s=4.0)) for _ in range(10))
    assert num_came >= 9 * len(NUMBERS)


def test_what_readers_that_died_had_on_loan_comes_back(make_host: MakeHost) -> None:
    """More than the lender's memory holds, in all."""
    one = make_host("one")
    other = make_host("other", one)
    one.put(*range(30), shape=LARGE)
    for _ in range(4):
        until(lambda: other.peers.lookup_many(keys(1), Deadline.after(AMPLE_S)))

        def kill() -> None:
            time.sleep(0.05)
            other.kill()

        with in_a_thread(kill):
            fetch_in_time(other.peers, range(30), shape=LARGE)
    until(lambda: len(fetch_in_time(other.peers, range(30), shape=LARGE, deadline_s=AMPLE_S)) == 30)


def test_the_hosts_own_peer_process_dead_or_stalled(make_host: MakeHost, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "kvblend.store")
    one = make_host("one")
    other = make_host("other", one)
    one.put(1)
    assert fetch_in_time(other.peers, [1], deadline_s=AMPLE_S) == keys(1)
    other.stall()
    for _ in range(5):
        assert fetch_in_time(other.peers, [1]) == set()
    began = time.monotonic()
    assert fetch_in_time(other.peers, [1], deadline_s=AMPLE_S) == set()
    assert time.monotonic() - began < AMPLE_S / 2, "the breaker is not open"
    with pytest.raises(OSError, match="is not asked now"):
        other.peers.delete([make_key(1).variant], NEVER)
    other.go_on()
    until(lambda: fetch_in_time(other.peers, [1], deadline_s=AMPLE_S))
    other.kill()
    until(lambda: fetch_in_time(other.peers, [1], deadline_s=AMPLE_S))
    lines = [record.message for record in caplog.records]
    assert sum("in a row" in line for line in lines) in (1, 2) and sum("has died" in line for line in lines) == 1
    assert len(lines) <= 5


@pytest.mark.parametrize(
    "change", ["rewritten", "evicted", pytest.param("deleted and put", marks=pytest.mark.extended)]
)
def test_a_file_that_changes_at_the_peer_while_it_is_read(make_host: MakeHost, change: str) -> None:
    """What is rewritten in its place, which no store does, is found by its checksums; what is evicted still reads."""
    one = make_host("one")
    other = make_host("other", one)
    one.put(*NUMBERS, shape=LARGE)
    paths = {number: Path(one.settings.cpu_path) / make_key(number).file_name for number in NUMBERS}
    sound = {number: path.read_bytes() for number, path in paths.items()}
    ended = threading.Event()

    def disturb() -> None:
        chance = random.Random(3)
        while not ended.is_set():
            number = chance.choice(NUMBERS)
            if change == "rewritten":
                with paths[number].open("r+b") as file:
                    file.seek(chance.randrange(8192, len(sound[number]) - 4096))
                    file.write(bytes(4096))
                time.sleep(0.001)
                with paths[number].open("r+b") as file:
                    file.write(sound[number])
            elif change == "evicted":
                one.store.evict("cpu", len(sound[number]))
                one.put(*NUMBERS, shape=LARGE)
            else:
                one.cpu_tier.delete([make_key(number).variant], NEVER)
                one.put(number, shape=LARGE)

    num_right = num_found = 0
    with in_a_thread(disturb):
        for _ in range(20):
            for key, file in other.peers.fetch_many(keys(*NUMBERS), Deadline.after(AMPLE_S)).items():
                number = next(number for number in NUMBERS if make_key(number) == key)
                try:
                    assert torch.equal(file.read(), make_kv(number, shape=LARGE))
                    num_right += 1
                except CorruptPassageKVError:
                    num_found += 1
        ended.set()
    assert num_right >= 20
    assert (num_found > 0) == (change == "rewritten")


async def test_a_read_that_was_given_up_writes_nothing_more(make_host: MakeHost) -> None:
    """NIXL's own release of a read that is under way leaves it under way: destroying the agent does not."""
    one = make_host("one")
    one.put(*range(24), shape=LARGE)
    ring = Ring(1 << 28, lease_s=10.0)
    names = [make_key(number).file_name for number in range(24)]
    for attempt in range(5):
        link = await PeerLink.open(Address("127.0.0.1", one.port), "a token", ring)
        reply = await link.ask("fetch", Deadline.after(AMPLE_S), names=names)
        assert len(reply.grants) == len(names)
        reads = [asyncio.create_task(link.read(grant, Deadline.after(AMPLE_S))) for grant in reply.grants]
        await asyncio.sleep(0.01 * attempt)
        one.stall()
        link.close()
        await asyncio.gather(*reads, return_exceptions=True)
        whole = ring.view(0, ring.num_bytes)
        before = bytes(whole)
        one.go_on()
        await asyncio.sleep(0.3)
        assert bytes(whole) == before
        for read in reads:  # one that was done before
            if read.exception() is None and (start := read.result()) is not None:
                ring.give_back(start)
        assert ring.used_bytes == 0
        ring.check_integrity()
        await asyncio.to_thread(until, lambda: is_listening(one))
    ring.close()


def is_another(host: Host, pid: int) -> bool:
    return process_id(host.settings.cpu_path) not in (None, pid)


def is_listening(host: Host) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", host.port)) == 0
