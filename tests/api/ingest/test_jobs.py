"""Jobs tell their progress to any number of listeners, outlive their process, and are forgotten at last."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvblend.api.ingest import jobs, journal
from kvblend.api.ingest.jobs import Job, Jobs
from kvblend.api.ingest.journal import IngestJournal
from kvblend.api.ingest.uploads import Upload
from kvblend.core.errors import NotFoundError
from kvblend.core.rest import IngestJob


async def listen(job: Job) -> list[IngestJob]:
    return [state async for state in job.states()]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Callable[[], Jobs]]:
    """Makes the jobs of one process after another."""
    journals: list[IngestJournal] = []

    def opened() -> Jobs:
        for each in journals:
            each.close()
        journals[:] = [IngestJournal(tmp_path / "ingest.sqlite3")]
        return Jobs(journals[0])

    yield opened
    journals[0].close()


def upload(id: str, text: str = "text") -> Upload:
    return Upload(id=id, name=f"{id}.txt", media_type=None, data=text.encode(), metadata={"of": id})


async def accepted(jobs: Jobs, *uploads: Upload, collection: str = "c") -> Job:
    job = jobs.new(collection, [each.id for each in uploads])
    await jobs.accept(job, uploads)
    return job


async def test_every_listener_sees_the_end(folder: Callable[[], Jobs]) -> None:
    registry = folder()
    job = await accepted(registry, upload("d"))
    listeners = [asyncio.create_task(listen(job)) for _ in range(3)]
    for count in range(1, 4):
        await asyncio.sleep(0)
        job.update(status="running", passages_encoded=count)
    await registry.end(job, status="succeeded")
    for states in await asyncio.wait_for(asyncio.gather(*listeners), timeout=60):
        counts = [state.passages_encoded for state in states]
        assert counts == sorted(counts)
        assert (states[-1].status, counts[-1]) == ("succeeded", 3)
    assert [state.status for state in await listen(job)] == ["succeeded"], "a late listener gets the end alone"


async def test_ended_jobs_are_forgotten_and_running_ones_are_not(
    folder: Callable[[], Jobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "MAX_ENDED_JOBS", 2)
    monkeypatch.setattr(journal, "MAX_ENDED_JOBS", 2)
    registry = folder()
    running = await accepted(registry)
    ended = [await accepted(registry) for _ in range(4)]
    for job in ended:
        await registry.end(job, status="succeeded")
    await accepted(registry)
    later = folder()
    assert len(await later.take_up()) == 2
    for each in (registry, later):
        assert each.get("c", running.state.id).state == running.state
        for job in ended[:2]:
            with pytest.raises(NotFoundError):
                each.get("c", job.state.id)
        assert each.get("c", ended[-1].state.id).state == ended[-1].state


async def test_a_job_belongs_to_its_collection(folder: Callable[[], Jobs]) -> None:
    registry = folder()
    job = await accepted(registry)
    with pytest.raises(NotFoundError, match="'other'"):
        registry.get("other", job.state.id)


async def test_what_has_not_ended_goes_on_in_the_next_process(folder: Callable[[], Jobs]) -> None:
    """With what is still to be taken: the newest upload of each document that was not deleted since."""
    registry = folder()
    old = await accepted(registry, upload("a", "old"), upload("b"), upload("c"))
    new = await accepted(registry, upload("a", "new"))
    other = await accepted(registry, upload("a", "of another collection"), collection="other")
    gone = await accepted(registry, upload("a"), collection="gone")
    await registry.withdraw("c", "b")
    await registry.forget_collection("gone")
    later = folder()
    found = {
        job.state.id: [(each.id, each.data, each.metadata) for each in left] for job, left in await later.take_up()
    }
    assert found == {
        old.state.id: [("c", b"text", {"of": "c"})],
        new.state.id: [("a", b"new", {"of": "a"})],
        other.state.id: [("a", b"of another collection", {"of": "a"})],
    }
    with pytest.raises(NotFoundError):
        later.get("gone", gone.state.id)
    await accepted(later, upload("c"))
    assert [len(left) for _, left in await folder().take_up()] == [0, 1, 1, 1], "numbers go on in the next process"


async def test_a_job_that_ends_its_process_again_and_again_is_not_begun_once_more(folder: Callable[[], Jobs]) -> None:
    """Negative control: where the process ends as it should, the job goes on however often."""
    job = await accepted(folder(), upload("bomb"))
    for _ in range(5):
        registry = folder()
        assert len(await registry.take_up()) == 1
        await registry.rest()
    for _ in range(jobs.MAX_CUTS):
        assert len(await folder().take_up()) == 1
    registry = folder()
    assert await registry.take_up() == []
    state = registry.get("c", job.state.id).state
    assert state.status == "failed" and "3 times" in (state.error or "")
    assert folder().get("c", job.state.id).state.status == "failed", "nor is it later"


async def test_ended_and_deleted_documents_leave_no_bytes(folder: Callable[[], Jobs], tmp_path: Path) -> None:
    registry = folder()
    ended, _ = await accepted(registry, upload("a", "a secret")), await accepted(registry, upload("b", "a secret"))

    def num_secrets() -> int:
        return sum(path.read_bytes().count(b"a secret") for path in tmp_path.iterdir())

    assert num_secrets() >= 2
    await registry.end(ended, status="succeeded")
    await registry.withdraw("c", "b")
    assert num_secrets() == 0


async def test_a_rebuild_goes_on_in_the_next_process(folder: Callable[[], Jobs]) -> None:
    """As one, though nothing was uploaded for it; the documents' own bytes are the catalog's."""
    registry = folder()
    rebuild = registry.new("c", ["a", "b"], is_rebuild=True)
    await registry.accept(rebuild)
    upload_after = await accepted(registry, upload("a"))
    later = folder()
    found = [(job.state.id, job.is_rebuild, job.state.document_ids, len(left)) for job, left in await later.take_up()]
    assert found == [(rebuild.state.id, True, ["a", "b"], 0), (upload_after.state.id, False, ["a"], 1)]
    await later.end(later.get("c", rebuild.state.id), status="succeeded")
    assert [job.is_rebuild for job, _ in await folder().take_up()] == [False]


async def test_a_journal_of_the_version_before_is_read(folder: Callable[[], Jobs], tmp_path: Path) -> None:
    path = tmp_path / "ingest.sqlite3"
    schema = journal.SCHEMA.replace(",\n    is_rebuild INTEGER NOT NULL DEFAULT 0", "")
    assert schema != journal.SCHEMA
    state = IngestJob(id="j", collection="c", status="queued", document_ids=["d"])
    with sqlite3.connect(path) as old:
        old.executescript(f"{schema}; PRAGMA user_version=1")
        old.execute(
            "INSERT INTO jobs (id, collection, number, state) VALUES ('j', 'c', 1, ?)", [state.model_dump_json()]
        )
    old.close()
    assert [(job.state, job.is_rebuild) for job, _ in await folder().take_up()] == [(state, False)]
