"""When a server is idle, and what a request ends."""

import asyncio

import pytest

from kvblend.api.engine.load import Load


async def test_idle_begins_anew_with_every_request() -> None:
    load, now = Load(), asyncio.get_running_loop().time
    with load.request():
        waiting = asyncio.create_task(load.idle_for(1.0))
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.1)
    with load.request():  # within the second
        pass
    began = now()
    await asyncio.wait_for(waiting, 60)
    assert now() - began > 0.99 and load.num_requests == 0


async def test_a_request_cancels_what_runs_while_idle() -> None:
    load = Load()
    ended = asyncio.Event()

    async def work() -> str:
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()
        return "done"

    running = asyncio.create_task(load.while_idle(work()))
    await asyncio.sleep(0.05)
    with load.request(), load.request():
        assert await asyncio.wait_for(running, 25) is None
    assert ended.is_set() and load.num_requests == 0


async def test_work_of_an_idle_server_gives_its_result_or_its_error() -> None:
    async def fail() -> None:
        raise ValueError("broken")

    assert await Load().while_idle(asyncio.sleep(0, "done")) == "done"
    with pytest.raises(ValueError, match="broken"):
        await Load().while_idle(fail())
