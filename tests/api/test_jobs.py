"""Jobs tell their progress to any number of listeners, and ended ones are forgotten at last."""

import asyncio

import pytest

from kvblend.api import jobs
from kvblend.api.jobs import Job, Jobs
from kvblend.core.errors import NotFoundError
from kvblend.core.rest import IngestJob


async def listen(job: Job) -> list[IngestJob]:
    return [state async for state in job.states()]


async def test_every_listener_sees_the_end() -> None:
    job = Jobs().create("c", ["d"])
    listeners = [asyncio.create_task(listen(job)) for _ in range(3)]
    for count in range(1, 4):
        await asyncio.sleep(0)
        job.update(status="running", passages_encoded=count)
    job.update(status="succeeded")
    for states in await asyncio.wait_for(asyncio.gather(*listeners), timeout=5):
        counts = [state.passages_encoded for state in states]
        assert counts == sorted(counts)
        assert (states[-1].status, counts[-1]) == ("succeeded", 3)
    assert [state.status for state in await listen(job)] == ["succeeded"], "a late listener gets the end alone"


async def test_ended_jobs_are_forgotten_and_running_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MAX_ENDED_JOBS", 2)
    registry = Jobs()
    running = registry.create("c", [])
    ended = [registry.create("c", []) for _ in range(4)]
    for job in ended:
        job.update(status="succeeded")
    registry.create("c", [])
    assert registry.get("c", running.state.id) is running
    for job in ended[:2]:
        with pytest.raises(NotFoundError):
            registry.get("c", job.state.id)
    assert registry.get("c", ended[-1].state.id) is ended[-1]


async def test_a_job_belongs_to_its_collection() -> None:
    registry = Jobs()
    job = registry.create("c", [])
    with pytest.raises(NotFoundError, match="'other'"):
        registry.get("other", job.state.id)
