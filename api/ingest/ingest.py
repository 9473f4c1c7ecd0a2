"""Ingest: parse, split, embed, commit and encode as a job, which the caller does not wait for; and the way back."""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any

from kvblend.api.access.shares import Shares
from kvblend.api.collections import Collections
from kvblend.api.ingest.document_writer import DocumentWriter
from kvblend.api.ingest.jobs import Job, Jobs
from kvblend.api.ingest.upload_room import UploadRoom
from kvblend.api.ingest.uploads import Upload
from kvblend.api.kv.deletions import KVDeletions
from kvblend.api.metrics import Metrics
from kvblend.api.open_collection import OpenCollection
from kvblend.api.prompt.neighbours import PairLedger
from kvblend.core.collection_name import tenant_of
from kvblend.core.errors import KVBlendError, NotFoundError, TooManyJobsError
from kvblend.core.rest import IngestJob
from kvblend.retriever import Retriever

__all__ = ["Ingest"]

logger = logging.getLogger(__name__)


class Ingest:
    """Puts documents into collections and takes them out, text, vectors and KV together.

    Documents are parsed in worker processes, and embedded and committed in threads of their own: queries wait for none
    of it.
    """

    def __init__(
        self,
        writer: DocumentWriter,
        retriever: Retriever,
        collections: Collections,
        deletions: KVDeletions,
        pairs: PairLedger,
        metrics: Metrics,
        jobs: Jobs,
        shares: Shares,
        *,
        max_jobs: int,
    ) -> None:
        """`writer` ends with it."""
        self.jobs = jobs
        self.room = UploadRoom(shares)
        self._shares = shares
        self._max_jobs = max_jobs
        self._writer, self._pending = writer, writer.pending
        self._retriever = retriever
        self._collections = collections
        self._deletions = deletions
        self._pairs = pairs
        self._metrics = metrics
        self._running: dict[asyncio.Task[None], str] = {}
        """Whose job each is."""
        self._stopped = False

    def require_room(self, name: str) -> None:
        """Raise TooManyJobsError where as many jobs wait or run as may, of all or of this collection's tenant."""
        tenant = tenant_of(name)
        num_jobs, num_own = len(self._running), sum(own == tenant for own in self._running.values())
        if num_jobs >= self._max_jobs:
            raise TooManyJobsError(f"{num_jobs} ingest jobs wait or run, as many as the service takes")
        if num_own >= self._shares.places(tenant, self._max_jobs, "max_jobs"):
            raise TooManyJobsError(
                f"{num_own} ingest jobs of the tenant {tenant!r} wait or run, as many as it may have at a time"
            )

    async def begin(self, name: str, uploads: Sequence[Upload]) -> Job:
        """Accept documents, whose room has been taken, and start their ingest as a job, which gives it back.

        Raises NotFoundError, ConflictError, TooManyJobsError; then none of the documents is taken, and their room is
        given back. What is wrong with a document its job says.
        """
        try:
            self.require_room(name)
            collection = await asyncio.to_thread(self._collections.open, name)
            job = await self._accept(name, uploads)
        except BaseException:
            self.room.give(_num_bytes(uploads), tenant_of(name))
            raise
        self._work(name, self._run(job, collection, list(uploads)))
        return job

    async def _accept(self, name: str, uploads: Sequence[Upload]) -> Job:
        ids = [upload.id for upload in uploads]
        job = self.jobs.new(name, ids)
        self._pending.accept(name, ids, job)
        try:
            await self.jobs.accept(job, uploads)
        except BaseException:
            self._pending.end(name, ids, job)
            raise
        return job

    async def take_up(self) -> None:
        """Go on with the jobs that the service's last process left."""
        for job, uploads in await self.jobs.take_up():
            try:
                collection = await asyncio.to_thread(self._collections.open, job.state.collection)
            except KVBlendError as error:
                await self.jobs.end(job, status="failed", error=f"the service was ended in its midst: {error.message}")
                continue
            logger.info("job %s goes on where the service's end has left it", job.state.id)
            if job.is_rebuild:
                self._work(collection.name, self._to_its_end(job, collection, self._rebuild(job, collection)))
                continue
            self.room.hold(_num_bytes(uploads), tenant_of(collection.name))
            self._pending.accept(collection.name, [upload.id for upload in uploads], job)
            self._work(collection.name, self._run(job, collection, uploads))

    def _work(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Begin a job of a collection."""
        if self._stopped:
            work.close()
            return
        task = asyncio.create_task(work, name="kvblend ingest")
        self._running[task] = tenant_of(name)
        task.add_done_callback(self._running.pop)

    async def rebuild(self, name: str, passage_tokens: int | None, *, max_model_len: int | None) -> Job:
        """Split and embed a collection's documents anew, from what is kept of them, as a job: one document at a time,
        whose old passages are found until then. What is as it would be is left alone.

        Raises NotFoundError, ConflictError, InvalidRequestError, TooManyJobsError.
        """
        self.require_room(name)
        collection = await asyncio.to_thread(
            self._collections.begin_rebuild, name, passage_tokens, max_model_len=max_model_len
        )
        await asyncio.to_thread(self._retriever.begin_rebuild, name)
        ids = await asyncio.to_thread(self._collections.document_ids, name)
        job = self.jobs.new(name, ids, is_rebuild=True)
        await self.jobs.accept(job)
        self._work(name, self._to_its_end(job, collection, self._rebuild(job, collection)))
        return job

    async def delete_document(self, name: str, document_id: str) -> None:
        """Delete a document, and the passages and KV that nothing else holds; one that was accepted and is not
        committed yet never will be. Raises NotFoundError."""
        withdrawn = self._pending.withdraw(name, document_id)
        await self.jobs.withdraw(name, document_id)
        async with self._pending.turn(name, document_id):
            names = await asyncio.to_thread(self._collections.document_names, name, document_id)
            async with self._deletions.of(names):
                try:
                    await asyncio.to_thread(self._retriever.delete_document, name, document_id)
                except NotFoundError:
                    if not withdrawn:
                        raise
            await self._writer.forget(name, names)

    async def delete_collection(self, name: str) -> None:
        """Delete a collection with all that is in it, or was accepted for it. Raises NotFoundError."""
        async with self._deletions.of(await asyncio.to_thread(self._collections.names, name)):
            self._pending.withdraw(name)
            await asyncio.to_thread(self._retriever.delete_collection, name)
            self._pending.withdraw(name)
            await self.jobs.forget_collection(name)
        await asyncio.to_thread(self._pairs.forget, name)

    def stop(self) -> None:
        """Begin no document any more; what is accepted goes on after the next start."""
        self._stopped = True
        for task in self._running:
            task.cancel()

    async def close(self) -> None:
        """Stop the jobs, behind the documents that are being committed."""
        self.stop()
        await self.jobs.rest()
        self._writer.stop()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._writer.close()

    async def _run(self, job: Job, collection: OpenCollection, uploads: list[Upload]) -> None:
        async def work() -> None:
            plans = await self._writer.plan(job, collection, uploads)
            self._parsed(collection, uploads)
            await self._writer.write(job, collection, plans)

        try:
            await self._to_its_end(job, collection, work())
        finally:
            self._parsed(collection, uploads)

    def _parsed(self, collection: OpenCollection, uploads: list[Upload]) -> None:
        """Let go of what waited to be parsed."""
        self.room.give(_num_bytes(uploads), tenant_of(collection.name))
        uploads.clear()

    async def _rebuild(self, job: Job, collection: OpenCollection) -> None:
        """Take each document anew; what an earlier process has done of it is as it would be, and left alone."""
        for document_id in job.state.document_ids:
            if not self._pending.offer(collection.name, document_id, job):
                continue  # it is being uploaded anew, which splits it anew
            try:
                upload = await asyncio.to_thread(self._kept, collection.name, document_id)
            except NotFoundError:
                continue  # deleted meanwhile
            if upload is None:
                reason = "an earlier version, which kept no sources, took it: upload it once more"
                job.update(failures={**job.state.failures, document_id: reason})
                continue
            plans = await self._writer.plan(job, collection, [upload])
            await self._writer.write(job, collection, plans)

    def _kept(self, name: str, document_id: str) -> Upload | None:
        """A document as it was uploaded; None where its source was not kept. Raises NotFoundError."""
        catalog = self._retriever.catalog
        document, data = catalog.get_document(name, document_id), catalog.document_source(name, document_id)
        if data is None:
            return None
        return Upload(document.id, document.name, document.media_type, data, document.metadata)

    async def _to_its_end(self, job: Job, collection: OpenCollection, work: Coroutine[Any, Any, None]) -> None:
        """Do a job's work, and let the job say how it ended."""
        try:
            await work
            end = _end_of(job.state)
        except KVBlendError as error:
            end = {"status": "failed", "error": error.message}
        except Exception:
            logger.exception("an ingest into %r failed", collection.name)
            end = {"status": "failed", "error": "the service failed on this ingest; its log says how"}
        finally:  # a job that is cancelled goes on after the next start
            self._pending.end(collection.name, job.state.document_ids, job)
        await self.jobs.end(job, **end)
        self._metrics.job(job.state.status)


def _num_bytes(uploads: Sequence[Upload]) -> int:
    return sum(len(upload.data) for upload in uploads)


def _end_of(state: IngestJob) -> dict[str, Any]:
    """How a job ends whose work is done."""
    if not state.failures:
        return {"status": "succeeded", "error": state.error}
    first = next(iter(state.failures.values()))
    return {
        "status": "failed",
        "error": f"{len(state.failures)} of {len(state.document_ids)} documents were not taken: {first}",
    }
