"""Ingest jobs: their progress, for whoever asks or listens."""

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator
from typing import Any

from kvblend.core.errors import NotFoundError
from kvblend.core.rest import IngestJob

__all__ = ["Job", "Jobs"]

MAX_ENDED_JOBS = 1000


class Job:
    """One ingest under way. Its `state` is replaced at each change."""

    def __init__(self, collection: str, document_ids: list[str]) -> None:
        self.state = IngestJob(id=uuid.uuid4().hex, collection=collection, status="queued", document_ids=document_ids)
        self._begun_at = time.monotonic()
        self._changed = asyncio.Event()

    @property
    def ended(self) -> bool:
        return self.state.status in ("succeeded", "failed")

    def update(self, **changes: Any) -> None:
        """Set fields of the state and wake who listens."""
        seconds = round(time.monotonic() - self._begun_at, 3)
        self.state = self.state.model_copy(update={"seconds": seconds, **changes})
        self._changed.set()
        self._changed = asyncio.Event()

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
    """The jobs of this process; of those that have ended the newest thousand."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, Job] = OrderedDict()

    def create(self, collection: str, document_ids: list[str]) -> Job:
        """A new job, queued."""
        job = Job(collection, document_ids)
        self._jobs[job.state.id] = job
        ended = [id for id, job in self._jobs.items() if job.ended]
        for id in ended[: max(0, len(ended) - MAX_ENDED_JOBS)]:
            del self._jobs[id]
        return job

    def get(self, collection: str, id: str) -> Job:
        """The job of this id. Raises NotFoundError."""
        job = self._jobs.get(id)
        if job is None or job.state.collection != collection:
            raise NotFoundError(
                f"collection {collection!r} has no job {id!r}; jobs do not outlive the service's process"
            )
        return job
