"""Several vLLM servers, of which each has passages of its own near: they say which, and the right one answers."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path

import pytest

from kvblend.api.engine.choice import Wanted
from kvblend.api.engine.control_channels import ControlChannels
from kvblend.api.engine.replicas import EngineFacts, Replica, Replicas
from kvblend.core.control import Held, KVName
from kvblend.core.errors import EngineUnavailableError
from kvblend.vllm_connector.scheduler.control import ControlServer
from tests.api.engine.test_control import INFO
from tests.api.scripted_engine import ScriptedEngine

A, B, C = ("context", "a"), ("context", "b"), ("context", "c")


class Holder:
    """What a connector says that its engine holds."""

    def __init__(self, *held: KVName) -> None:
        self.held, self.num_requests, self.asked = set(held), 0, list[KVName]()
        self.is_slow = False

    def look(self, names: Sequence[KVName]) -> Future[Held]:
        told = Future[Held]()
        self.asked.extend(names)
        if not self.is_slow:
            told.set_result(Held(passages=[name in self.held for name in names], num_requests=self.num_requests))
        return told


@pytest.fixture
def holders() -> list[Holder]:
    return [Holder(A, B), Holder(C)]


@pytest.fixture
def addresses(tmp_path: Path, holders: list[Holder]) -> Iterator[list[str]]:
    info = INFO.model_copy(update={"places": ["somewhere"]})
    addresses = [f"ipc://{tmp_path}/{number}.sock" for number in range(len(holders))]
    with ExitStack() as stack:
        for address, holder in zip(addresses, holders, strict=True):
            stack.callback(ControlServer(address, info, look=holder.look).close)
        yield addresses


@pytest.fixture
async def replicas(addresses: list[str], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Replicas]:
    monkeypatch.setattr("kvblend.api.engine.replicas.HELD_WAIT_S", 10.0)
    with ExitStack() as stack:
        engines = [ScriptedEngine() for _ in addresses]
        for each in engines:
            stack.enter_context(each.running())
        replicas = Replicas([Replica(*each) for each in zip([each.url for each in engines], addresses, strict=True)])
        await asyncio.gather(*(replica.facts() for replica in replicas._replicas))
        yield replicas
        await replicas.close()


def wanted(*names: KVName, session: str = "session") -> Wanted:
    return Wanted([(100, [name]) for name in names], session)


async def number_of(replicas: Replicas, wanted: Wanted | None) -> int:
    replica, _ = await replicas.choose(wanted)
    return replicas._replicas.index(replica)


async def test_the_one_that_has_more_of_it_near_answers(replicas: Replicas) -> None:
    assert [await number_of(replicas, wanted(*names)) for names in ((A, B, C), (A,), (C,))] == [0, 0, 1]
    assert await replicas.held([A, C, ("context", "nowhere")]) == {A, C}


async def test_but_not_where_it_is_too_busy_with_whoever_s_requests(replicas: Replicas, holders: list[Holder]) -> None:
    holders[0].num_requests = 4
    assert await number_of(replicas, wanted(A, B)) == 1
    holders[0].num_requests = 0
    with contextlib.ExitStack() as requests:  # that this service has just sent, and the engine has not seen
        for _ in range(4):
            requests.enter_context(replicas._replicas[0].load.request())
        assert await number_of(replicas, wanted(A, B)) == 1
    assert await number_of(replicas, wanted(A, B)) == 0


async def test_what_nobody_holds_goes_where_its_context_went(replicas: Replicas) -> None:
    chosen = {
        session: [await number_of(replicas, wanted(("context", "new"), session=session)) for _ in range(2)]
        for session in map(str, range(12))
    }
    assert all(first == again for first, again in chosen.values())
    assert {first for first, _ in chosen.values()} == {0, 1}


async def test_one_that_does_not_say_in_time_holds_nothing(
    replicas: Replicas, holders: list[Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    holders[0].is_slow = True
    monkeypatch.setattr("kvblend.api.engine.replicas.HELD_WAIT_S", 0.5)
    async with asyncio.timeout(20):
        assert await replicas.held([A, C]) == {C}
        assert await number_of(replicas, wanted(A, C)) == 1


async def test_nobody_is_asked_where_it_makes_no_difference(replicas: Replicas, holders: list[Holder]) -> None:
    await number_of(replicas, None)
    await number_of(replicas, Wanted([], "session"))
    assert not holders[0].asked and not holders[1].asked


async def test_of_one_that_dies_another_takes_over(replicas: Replicas) -> None:
    asked = []

    async def ask(replica: Replica, facts: EngineFacts) -> AsyncGenerator[int, None]:
        asked.append(replicas._replicas.index(replica))
        with replica.request():
            if len(asked) == 1:
                raise EngineUnavailableError("it died")
            yield asked[-1]

    assert [item async for item in replicas.answers(ask, wanted=wanted(C))] == [asked[-1]]
    assert asked[0] == 1 and len(asked) == 2


async def test_engines_behind_one_router_hold_what_any_of_them_holds(
    addresses: list[str], holders: list[Holder]
) -> None:
    holders[0].num_requests, holders[1].num_requests = 2, 3
    channels = ControlChannels(", ".join(addresses))
    try:
        told = await channels.held([A, C, ("context", "nowhere")], timeout_s=10)
        assert told == Held(passages=[True, True, False], num_requests=5)
    finally:
        await channels.close()
