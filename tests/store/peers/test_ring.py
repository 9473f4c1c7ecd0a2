"""Memory that is lent, and the directory of who holds what."""

import asyncio
import os

import pytest

from kvblend.store.deadline import Deadline
from kvblend.store.peers.directory import Directory
from kvblend.store.peers.ring import Ring

PAGE = 4096


@pytest.fixture
def ring() -> Ring:
    return Ring(4 * PAGE, lease_s=0.2)


async def test_what_is_lent_comes_back_from_its_holder_alone(ring: Ring) -> None:
    start = ring.take(PAGE)
    assert start is not None
    lease = ring.lend(start, "one")
    ring.release(lease, "another")
    ring.release(lease + 1, "one")
    assert ring.used_bytes == PAGE and ring.is_lent
    ring.release(lease, "one")
    ring.release(lease, "one")
    assert ring.used_bytes == 0 and not ring.is_lent
    ring.check_integrity()


async def test_what_a_holder_that_is_gone_had_comes_back(ring: Ring) -> None:
    for holder in ("one", "one", "two"):
        start = ring.take(PAGE)
        assert start is not None
        ring.lend(start, holder)
    ring.release_all("one")
    assert ring.used_bytes == PAGE
    ring.check_integrity()


async def test_what_is_not_released_comes_back_when_its_time_is_up(ring: Ring) -> None:
    start = ring.take(4 * PAGE)
    assert start is not None
    ring.lend(start, "one that died")
    assert ring.take(PAGE) is None
    assert await ring.take_soon(PAGE, Deadline.after(0.05)) is None
    assert await ring.take_soon(PAGE, Deadline.after(20.0)) is not None
    assert await ring.take_soon(5 * PAGE, Deadline.after(2.0)) is None
    ring.check_integrity()


async def test_who_waits_for_room_gets_what_is_given_back(ring: Ring) -> None:
    start = ring.take(4 * PAGE)
    assert start is not None
    waiting = asyncio.create_task(ring.take_soon(2 * PAGE, Deadline.after(20.0)))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    ring.give_back(start)
    assert await waiting == 0


async def test_ranges_do_not_overlap_and_are_shared_by_their_file(ring: Ring) -> None:
    one, two = ring.take(PAGE), ring.take(PAGE)
    assert one is not None and two is not None and abs(one - two) >= PAGE
    ring.view(one, PAGE)[:] = b"1" * PAGE
    ring.view(two, PAGE)[:] = b"2" * PAGE
    assert os.pread(ring.fd, PAGE, one) == b"1" * PAGE and os.pread(ring.fd, PAGE, two) == b"2" * PAGE
    assert ring.address % PAGE == 0


def test_the_directory_knows_who_answered_last() -> None:
    directory = Directory[str]()
    directory.learn("a", asked=["1", "2", "3"], found=["1", "2"])
    directory.learn("b", asked=["1", "2", "3"], found=["1", "3", "not asked for"])
    assert [directory.holders(name) for name in "123"] == [["a", "b"], ["a"], ["b"]]
    directory.learn("a", asked=["1"], found=[])
    assert directory.holders("1") == ["b"]
    directory.forget("b", "1")
    directory.forget("b", "never heard of")
    assert directory.holders("1") == [] and len(directory) == 2


def test_the_directory_forgets_what_is_old_and_what_is_too_much() -> None:
    short = Directory[str](life_s=0.0)
    short.learn("a", asked=["1"], found=["1"])
    assert short.holders("1") == []
    small = Directory[str](max_names=2)
    for name in "123":
        small.learn("a", asked=[name], found=[name])
    small.learn("b", asked=["2"], found=["2"])
    small.learn("a", asked=["4"], found=["4"])
    assert [name for name in "1234" if small.holders(name)] == ["2", "4"]
