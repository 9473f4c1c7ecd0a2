"""One host at a time encodes a passage, among hosts that meet by a remote tier alone."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kvblend.core.settings import Settings
from kvblend.store import NEVER, Deadline, TieredStore, Variant
from kvblend.store.remote.claim_note import MARGIN_S, ClaimNote
from tests.store.claim_turns import take_turns
from tests.store.remote.mooncake_server import MooncakeServer, needs_mooncake
from tests.store.remote.remote_contract import DEADLINE_S, SLACK_S
from tests.store.remote.servers import AWS, S3Server, Server, ValkeyServer
from tests.store.samples import make_key, make_kv

ROOT = Path(__file__).resolve().parents[3]
KINDS = ["redis", "s3", pytest.param("mooncake", marks=needs_mooncake)]


def host(folder: Path, server: Server | None) -> TieredStore:
    remote = None if server is None else server.url
    return TieredStore.from_settings(Settings(home=folder, cpu_bytes=0, disk_bytes=1 << 24, remote=remote))


def variant(number: int) -> Variant:
    return make_key(number).variant


def started(kind: str, folder: Path) -> Server:
    return {"redis": lambda: ValkeyServer(folder), "s3": S3Server, "mooncake": MooncakeServer}[kind]()


@pytest.fixture(scope="module", autouse=True)
def credentials() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in AWS.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture(params=KINDS)
def faulty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """One of the test's own."""
    with started(request.param, tmp_path) as server:
        yield server


@pytest.fixture
def make_host(tmp_path: Path) -> Iterator[Callable[[str, Server | None], TieredStore]]:
    with ExitStack() as closing:
        yield lambda name, server: closing.enter_context(host(tmp_path / name, server))


MakeHost = Callable[[str, Server | None], TieredStore]


def test_two_hosts(server: Server, make_host: MakeHost) -> None:
    one, two = make_host("one", server), make_host("two", server)
    claim = one.claim(variant(1))
    assert claim is not None and two.claim(variant(1)) is None and one.claim(variant(1)) is None
    other = two.claim(variant(2))
    assert other is not None
    own = make_host("two", None).claim(variant(1))  # a neighbour, whom its own host's part of it does not keep from it
    assert own is not None
    own()
    claim()
    again = two.claim(variant(1))
    assert again is not None and one.claim(variant(1)) is None
    again()
    other()


def test_a_claim_is_no_passage_kv(server: Server, make_host: MakeHost) -> None:
    """It is listed nowhere, and outlives a delete of the passage; given back, nothing is left of it."""
    one, two = make_host("one", server), make_host("two", server)
    (tier,) = one.remotes
    key, before = make_key(3), server_keys(server)
    claim = one.claim(key.variant)
    assert claim is not None
    assert tier.variants(key.model_fingerprint, key.passage_id, NEVER) == set()
    assert not two.lookup_many([key]) and not two.open_many([key]) and two.delete([key.variant]) == 0
    assert two.claim(key.variant) is None, "the delete took the claim with it"
    one.put(key, make_kv(3), capture_position=1)
    one._writer.drain()
    assert tier.variants(key.model_fingerprint, key.passage_id, NEVER) == {key}
    assert two.delete([key.variant]) == 1
    assert two.claim(key.variant) is None
    claim()
    assert server_keys(server) == before


def server_keys(server: Server) -> int:
    return 0 if isinstance(server, MooncakeServer) else server.num_keys()  # to count them there is to take them away


def test_what_is_over_is_the_next_ones(server: Server, make_host: MakeHost) -> None:
    one, two = make_host("one", server), make_host("two", server)
    brief = one.claim(variant(4), seconds=4.0)
    assert brief is not None and two.claim(variant(4)) is None
    time.sleep(4.1)
    taken = make_host("three", server).claim(variant(4))
    assert taken is not None
    brief()  # too late, and no matter
    assert two.claim(variant(4)) is None
    taken()
    free = two.claim(variant(4))
    assert free is not None
    free()


def test_a_host_that_is_killed_keeps_a_claim_as_long_as_that_lasts(server: Server, tmp_path: Path) -> None:
    code = f"""
import pathlib, time
from kvblend.core.settings import Settings
from kvblend.store import TieredStore
from tests.store.samples import make_key
folder = pathlib.Path({str(tmp_path / "one")!r})
settings = Settings(home=folder, cpu_bytes=0, disk_bytes=1 << 24, remote={server.url!r})
claim = TieredStore.from_settings(settings).claim(make_key(5).variant, seconds=6.0)
print(claim is not None, flush=True)
time.sleep(60)
"""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command, environment = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": path}
    with (
        host(tmp_path / "two", server) as store,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as holder,
    ):
        assert holder.stdout is not None and holder.stdout.readline() == "True\n"
        began = time.monotonic()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        num_asked = 0
        while (claim := store.claim(variant(5))) is None:
            assert time.monotonic() - began < 120, "a host that is gone keeps it"
            num_asked += 1
            time.sleep(0.05)
        assert num_asked > 0 and time.monotonic() - began > 2.0
        claim()


def num_unanswered(caplog: pytest.LogCaptureFixture) -> int:
    """Claims that a busy server did not answer: these are had without it."""
    return sum(" tier has no claim on " in message for message in caplog.messages)


def test_never_two_at_once(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """60 times in turn, four hosts ask."""
    caplog.set_level(logging.DEBUG, "kvblend.store.remote")
    with ExitStack() as closing:
        stores = [closing.enter_context(host(tmp_path / str(number), server)) for number in range(4)]
        most_at_once, num_turns = take_turns(stores, variant(6), rounds=15, wait_s=0.001, hold_s=0.002)
    assert num_turns == 60 and 1 <= most_at_once <= 1 + num_unanswered(caplog)


def test_one_of_many_takes_over_what_is_over(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """20 times, four hosts ask at the moment in which a dead one's time is over."""
    caplog.set_level(logging.DEBUG, "kvblend.store.remote")
    with ExitStack() as closing:
        dead, *asking = [closing.enter_context(host(tmp_path / str(number), server)) for number in range(5)]
        for turn in range(20):
            own, claims = variant(100 + turn), list[Callable[[], None] | None]()
            caplog.clear()
            assert dead.claim(own, seconds=0.15) is not None
            at_once = threading.Barrier(len(asking))
            threads = [threading.Thread(target=ask_for, args=[store, own, claims, at_once]) for store in asking]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            num_claims = sum(claim is not None for claim in claims)
            assert 1 <= num_claims <= 1 + num_unanswered(caplog), f"turn {turn}: {claims}, {caplog.messages}"


def ask_for(
    store: TieredStore, own: Variant, claims: list[Callable[[], None] | None], at_once: threading.Barrier
) -> None:
    """Until somebody has it."""
    at_once.wait()
    until, claim = time.monotonic() + 60, None
    while claim is None and not any(claims) and time.monotonic() < until:
        claim = store.claim(own)
    claims.append(claim)


@pytest.mark.parametrize("how", ["dead", "stalled"])
def test_a_remote_that_does_not_answer_keeps_nobody_from_encoding(
    faulty: Server, make_host: MakeHost, how: str
) -> None:
    """Nor does a claim that it grants when nobody waits any more keep the next one from it."""
    store, other = make_host("one", faulty), make_host("two", faulty)
    warm = store.claim(variant(8))  # connects
    assert warm is not None
    warm()
    faulty.kill() if how == "dead" else faulty.stall()
    began = time.monotonic()
    claim = store.claim(variant(9), deadline=Deadline.after(DEADLINE_S))
    assert claim is not None and time.monotonic() - began < DEADLINE_S + SLACK_S
    if how == "stalled":
        faulty.go_on()
        until = time.monotonic() + 120
        while (own := other.claim(variant(9))) is None:
            assert time.monotonic() < until, "a claim that came late was not given back"
            time.sleep(0.05)
        own()
    claim()


def test_what_is_no_note_is_nobodys_claim(tmp_path: Path, make_host: MakeHost) -> None:
    with S3Server() as server:
        one, two = make_host("one", server), make_host("two", server)
        server.overwrite(f".claims/{variant(1).name}", b"someone else's file")
        claim = one.claim(variant(1))
        assert claim is not None and two.claim(variant(1)) is None
        claim()
        assert server.num_keys() == 0


def test_a_note_is_left_to_the_next_one_shortly_before_its_end() -> None:
    assert not ClaimNote.new(MARGIN_S + 5).is_nearly_over
    nearly = ClaimNote.new(MARGIN_S - 0.5)
    assert nearly.is_nearly_over and not nearly.is_over and ClaimNote.new(-0.1).is_over
    assert ClaimNote.parse(nearly.pack()) == nearly and ClaimNote.parse(b"") is None
