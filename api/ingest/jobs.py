"""Ingest jobs: their progress, for whoever asks or listens, in this process and after it."""

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from kvblend.api.ingest.journal import MAX_ENDED_JOBS, IngestJournal
from kvblend.api.ingest.uploads import Upload
from kvblend.core.collection_name import name_in_tenant
from kvblend.core.errors import NotFoundError
from kvblend.core.rest import IngestJob

__all__ = ["Job", "Jobs"]

MAX_CUTS = 3
"""A job that the service has not outlived so often is not begun again."""


class Job:
    """One ingest under way. Its `state` is replaced at each change."""

    def __init__(self, state: IngestJob, number: int, *, is_rebuild: bool = False) -> None:
        """`number`: its place in the order in which jobs were accepted. `is_rebuild`: it takes its collection's own
        documents anew."""
        self.state, self.number, self.is_rebuild = state, number, is_rebuild
        self._begun_at = time.monotonic()
        self._changed = asyncio.Event()

    @property
    def ended(self) -> bool:
        return self.state.status in ("succeeded", "failed")

    def update(self, **changes: Any) -> None:
        """Set fields of the state and wake who listens."""
        self.state = self.changed(**changes)
        self._changed.set()
        self._changed = asyncio.Event()

    def begin(self) -> None:
        """A first document of it is looked at."""
        if self.state.status == "queued":
            self.update(status="running")

    def changed(self, **changes: Any) -> IngestJob:
        """The state as `update` would set it now."""
        seconds = round(time.monotonic() - self._begun_at, 3)
        return self.state.model_copy(update={"seconds": seconds, **changes})

    async def states(self) -> AsyncGenerator[IngestJob, None]:
        """Yield the state now and after each change (several at once are one), the last when the job has ended."""
        while True:
            changed, state = self._changed, self.state
            yield state
            if state.status in ("succeeded", "failed"):
                return
            if state is self.state:
                await changed.wait()


class Jobs:
    """The jobs of this process and of those before it; of those that have ended the newest thousand.

    The journal knows a job before `accept` returns, and its end before `end` does.
    """

    def __init__(self, journal: IngestJournal) -> None:
        self._journal = journal
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        for state in journal.ended():
            self._jobs[state.id] = Job(state, 0)
        self._last_number = 0

    def new(self, collection: str, document_ids: list[str], *, is_rebuild: bool = False) -> Job:
        """A job, queued, that is `accept`ed next."""
        state = IngestJob(id=uuid.uuid4().hex, collection=collection, status="queued", document_ids=document_ids)
        return Job(state, self._next_number(), is_rebuild=is_rebuild)

    async def accept(self, job: Job, uploads: Sequence[Upload] = ()) -> None:
        """Keep a new job and its documents."""
        await asyncio.to_thread(self._journal.accept, job.state, job.number, uploads, is_rebuild=job.is_rebuild)
        self._add(job)

    async def end(self, job: Job, **changes: Any) -> None:
        """Set a job's last state."""
        last = job.changed(**changes)
        try:
            await asyncio.to_thread(self._journal.end, last)
        finally:
            job.update(**dict(last))

    async def take_up(self) -> list[tuple[Job, list[Upload]]]:
        """The jobs that the process before left behind, each with the documents that are still to be taken.

        One that was cut short again and again ends here: it may be what ends the process.
        """
        found = []
        for left in await asyncio.to_thread(self._journal.take_up):
            self._last_number = max(self._last_number, left.number)
            job = self._add(Job(left.state, left.number, is_rebuild=left.is_rebuild))
            if left.num_cuts > MAX_CUTS:
                await self.end(
                    job,
                    status="failed",
                    error=f"the service ended {MAX_CUTS} times in the midst of this ingest: it is not begun again",
                )
            else:
                found.append((job, left.uploads))
        return found

    async def withdraw(self, collection: str, document_id: str) -> None:
        """Let no later process take what was uploaded of a document until now."""
        await asyncio.to_thread(self._journal.withdraw, collection, document_id, before=self._next_number())

    async def forget_collection(self, collection: str) -> None:
        """Let no later process know the jobs that a collection has had until now."""
        await asyncio.to_thread(self._journal.forget_collection, collection, before=self._next_number())

    async def rest(self) -> None:
        """What has not ended goes on in the next process."""
        await asyncio.to_thread(self._journal.rest)

    def unfinished(self) -> list[Job]:
        """Those that are queued or run. May be called in any thread."""
        return [job for job in list(self._jobs.values()) if not job.ended]

    def get(self, collection: str, id: str) -> Job:
        """The job of this id. Raises NotFoundError."""
        job = self._jobs.get(id)
        if job is None or job.state.collection != collection:
            raise NotFoundError(
                f"collection {name_in_tenant(collection)!r} has no job {id!r}; of ended ones the newest thousand stay"
            )
        return job

    def _next_number(self) -> int:
        """Greater than every number before, in whatever process."""
        self._last_number = max(self._last_number + 1, time.time_ns())
        return self._last_number

    def _add(self, job: Job) -> Job:
        """Know a job in this process."""
        self._jobs[job.state.id] = job
        ended = [id for id, job in self._jobs.items() if job.ended]
        for id in ended[: max(0, len(ended) - MAX_ENDED_JOBS)]:
            del self._jobs[id]
        return job
