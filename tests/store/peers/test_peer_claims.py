"""One host at a time encodes a passage, among hosts that meet as peers alone: one of them decides."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec

import pytest

from kvblend.cli.engine import free_port
from kvblend.core.errors import InvalidRequestError
from kvblend.store import Deadline, TieredStore, Variant
from kvblend.store.peers import claims
from kvblend.store.peers.claims import PeerClaims, deciders
from tests.store.claim_turns import take_turns
from tests.store.peers.hosts import AMPLE_S, DEADLINE_S, SLACK_S, Host, MakeHost, until
from tests.store.samples import make_key

Claim = Callable[[], None]


def variant(number: int) -> Variant:
    return make_key(number).variant


def three_hosts(make: Callable[..., Host]) -> list[Host]:
    """Each has all of them in its list, and reaches them."""
    ports = [free_port() for _ in range(3)]
    remote = "nixl://" + ",".join(f"127.0.0.1:{port}" for port in ports)
    hosts = [make(f"host-{port}", remote=remote, port=port) for port in ports]
    for host in hosts:
        until(partial(reaches_all, host))
    return hosts


@pytest.fixture(scope="module")
def living(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    """Three that no test stops."""
    if find_spec("nixl_cu12") is None:
        pytest.skip("the package nixl-cu12 is not installed: it has wheels for Linux alone")
    folder = tmp_path_factory.mktemp("hosts")
    with pytest.MonkeyPatch.context() as patch, ExitStack() as closing:
        patch.setenv("UCX_TLS", "tcp")
        yield three_hosts(lambda name, **options: closing.enter_context(Host(folder / name, **options)))


@pytest.fixture
def hosts(make_host: MakeHost) -> list[Host]:
    """Three of the test's own."""
    return three_hosts(make_host)


def reaches_all(host: Host) -> bool:
    return not host.peers._ask("lookup", Deadline.after(AMPLE_S), names=[make_key(0).file_name]).unreached


def in_time(store: TieredStore, number: int, *, deadline_s: float = AMPLE_S) -> Claim | None:
    """A claim within a request's deadline."""
    began = time.monotonic()
    claim = store.claim(variant(number), seconds=600.0, deadline=Deadline.after(deadline_s))
    spent = time.monotonic() - began
    assert spent < deadline_s + SLACK_S, f"{spent:.3f} s"
    return claim


def decided_by(hosts: list[Host], number: int) -> Host:
    first = deciders(variant(number).name, [host.address for host in hosts])[0]
    return next(host for host in hosts if host.address == first)


def number_of(hosts: list[Host], decider: Host) -> int:
    """A passage of which this one decides."""
    return next(number for number in range(1, 1000) if decided_by(hosts, number) is decider)


def test_hosts_take_turns(living: list[Host]) -> None:
    """Whichever of them decides, the asker itself too."""
    for decider in living:
        number = number_of(living, decider)
        for holder in living:
            others = [host for host in living if host is not holder]
            claim = holder.store.claim(variant(number))
            assert claim is not None and [host.store.claim(variant(number)) for host in others] == [None, None]
            claim()
            again = others[0].store.claim(variant(number))
            assert again is not None and holder.store.claim(variant(number)) is None
            again()


def test_what_is_over_is_the_next_ones(living: list[Host]) -> None:
    """A process that was killed has not given it back; its late end, if it comes, ends nobody else's."""
    one, two, three = living
    brief = one.store.claim(variant(1), seconds=3.0)
    assert brief is not None and two.store.claim(variant(1)) is None
    time.sleep(3.0)
    taken = two.store.claim(variant(1))
    assert taken is not None
    brief()
    assert three.store.claim(variant(1)) is None
    taken()


def test_a_host_that_is_killed_holds_nothing(hosts: list[Host]) -> None:
    """Its peer process dies with it, and with that its connection to the one that decides."""
    one, two, _ = hosts
    number = number_of(hosts, two)
    assert one.store.claim(variant(number)) is not None and two.store.claim(variant(number)) is None
    one.kill_for_good()
    until(lambda: two.store.claim(variant(number)) is not None)


def test_where_the_one_that_decides_is_dead_another_does(hosts: list[Host]) -> None:
    dead, one, two = hosts
    number = number_of(hosts, dead)
    dead.kill_for_good()
    claim = in_time(one.store, number)
    assert claim is not None and in_time(two.store, number) is None
    claim()
    again = in_time(two.store, number)
    assert again is not None
    again()


def test_one_that_is_stalled_holds_nobody_up(hosts: list[Host]) -> None:
    """Another decides within the deadline; what was asked of it meanwhile is not held when it goes on."""
    stalled, one, two = hosts
    number = number_of(hosts, stalled)
    stalled.stall()
    claim = in_time(one.store, number, deadline_s=4.0)  # of which the next one in line gets half
    assert claim is not None and in_time(two.store, number, deadline_s=4.0) is None
    claim()
    for _ in range(4):  # until nobody asks it any more
        claim = in_time(one.store, number, deadline_s=4.0)
        assert claim is not None
        claim()
    stalled.go_on()
    end = time.monotonic() + 3.0  # it is asked again
    while time.monotonic() < end:
        claim = in_time(two.store, number)
        assert claim is not None, "a claim that nobody waited for is held"
        claim()
        time.sleep(0.02)


def test_where_nobody_answers_everybody_goes_on(make_host: MakeHost) -> None:
    one, two = make_host("one"), make_host("two")
    three = make_host("three", one, two)
    for peer in (one, two):
        peer.stall()
    for number in range(6):
        assert in_time(three.store, number, deadline_s=DEADLINE_S) is not None
    three.stall()
    own = in_time(three.store, 9, deadline_s=DEADLINE_S)
    assert own is not None, "nor where the host's own peer process does not answer"
    three.go_on()


def test_never_two_at_once(living: list[Host]) -> None:
    assert take_turns([host.store for host in living], variant(5), rounds=30) == (1, 90)


def test_deciders_stay_where_one_goes_away() -> None:
    """Every third name or so is each one's; those of one that is gone alone go to others."""
    names, peers = [f"name {number}" for number in range(3000)], ["a:1", "b:1", "c:1"]
    first = {name: deciders(name, peers)[0] for name in names}
    assert all(900 < list(first.values()).count(peer) < 1100 for peer in peers)
    for name in names:
        assert deciders(name, peers[::-1]) == deciders(name, peers)
        assert deciders(name, ["a:1", "c:1"])[0] == (first[name] if first[name] != "b:1" else deciders(name, peers)[1])


def test_claims_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "MAX_CLAIMS", 3)
    own = PeerClaims()
    assert all(own.take(name, holder="a", seconds=60, connection=1) for name in "xyz")
    with pytest.raises(InvalidRequestError, match="3 claims, and no more"):
        own.take("w", holder="a", seconds=60, connection=1)
    assert not own.take("x", holder="b", seconds=60, connection=2)
    own.give_back("x", holder="b")  # not its own
    assert not own.take("x", holder="b", seconds=60, connection=2)
    own.give_back("x", holder="a")
    assert own.take("x", holder="b", seconds=0, connection=2)
    assert own.take("w", holder="a", seconds=60, connection=2), "one that is over makes room"
    own.ended(1)
    assert own.take("y", holder="c", seconds=60, connection=3) and not own.take(
        "w", holder="c", seconds=1, connection=3
    )
