"""Ingest: parse, split, embed, commit and encode as a job, which the caller does not wait for; and the way back."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from kvblend.api.collections import Collections, OpenCollection
from kvblend.api.encode_room import EncodeRoom
from kvblend.api.encoder import NO_CONTEXT, Encoder, EncodeResult
from kvblend.api.jobs import Job, Jobs
from kvblend.api.kv_deletions import KVDeletions
from kvblend.api.metrics import Metrics
from kvblend.api.pending_documents import PendingDocuments
from kvblend.api.uploads import Upload
from kvblend.core.errors import KVBlendError, NotFoundError, OverloadedError
from kvblend.retriever import IngestPlan, Retriever, SplitPool

__all__ = ["Ingest"]

logger = logging.getLogger(__name__)

Tokens = tuple[int, ...]
Result = TypeVar("Result")

MAX_WAITING_BYTES = 1 << 30
"""Of documents that were accepted and are not parsed yet; one upload may be larger, alone."""
MAX_COMMITS = 2
"""At a time: embedding takes all cores by itself."""


class Ingest:
    """Puts documents into collections and takes them out, text, vectors and KV together.

    Documents are parsed in worker processes, and embedded and committed in threads of their own: queries wait for none
    of it.
    """

    def __init__(
        self,
        retriever: Retriever,
        splits: SplitPool,
        collections: Collections,
        encoder: Encoder,
        deletions: KVDeletions,
        room: EncodeRoom,
        metrics: Metrics,
    ) -> None:
        self.jobs = Jobs()
        self._retriever = retriever
        self._splits = splits
        self._collections = collections
        self._encoder = encoder
        self._deletions = deletions
        self._room = room
        self._metrics = metrics
        self._pending = PendingDocuments()
        self._parsing = ThreadPoolExecutor(splits.num_workers, thread_name_prefix="kvblend parsing")
        self._workers = asyncio.Semaphore(splits.num_workers)
        self._committing = ThreadPoolExecutor(MAX_COMMITS, thread_name_prefix="kvblend committing")
        self._waiting_bytes = 0
        self._running: set[asyncio.Task[None]] = set()

    async def begin(self, name: str, uploads: Sequence[Upload]) -> Job:
        """Accept documents and start their ingest as a job.

        Raises NotFoundError, ConflictError, and OverloadedError where too much waits already; then none of the
        documents is taken. What is wrong with a document its job says.
        """
        collection = await asyncio.to_thread(self._collections.open, name)
        num_bytes = sum(len(upload.data) for upload in uploads)
        if self._waiting_bytes and self._waiting_bytes + num_bytes > MAX_WAITING_BYTES:
            raise OverloadedError(
                f"{self._waiting_bytes} bytes of documents wait to be parsed, and {num_bytes} more are beyond the "
                f"{MAX_WAITING_BYTES} that may: come back later"
            )
        self._waiting_bytes += num_bytes
        ids = [upload.id for upload in uploads]
        job = self.jobs.create(name, ids)
        self._pending.accept(name, ids, job)
        task = asyncio.create_task(self._run(job, collection, list(uploads)), name="kvblend ingest")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return job

    async def delete_document(self, name: str, document_id: str) -> None:
        """Delete a document, and the passages and KV that nothing else holds; one that was accepted and is not
        committed yet never will be. Raises NotFoundError."""
        withdrawn = self._pending.withdraw(name, document_id)
        async with self._pending.turn(name, document_id):
            names = await asyncio.to_thread(self._collections.document_names, name, document_id)
            async with self._deletions.of(names):
                try:
                    await asyncio.to_thread(self._retriever.delete_document, name, document_id)
                except NotFoundError:
                    if not withdrawn:
                        raise

    async def delete_collection(self, name: str) -> None:
        """Delete a collection with all that is in it, or was accepted for it. Raises NotFoundError."""
        async with self._deletions.of(await asyncio.to_thread(self._collections.names, name)):
            self._pending.withdraw(name)
            await asyncio.to_thread(self._retriever.delete_collection, name)
            self._pending.withdraw(name)

    async def close(self) -> None:
        """Stop the jobs; what they had not encoded is completed after the next start."""
        for task in self._running:
            task.cancel()
        self._splits.close()
        await asyncio.gather(*self._running, return_exceptions=True)
        for threads in (self._parsing, self._committing):
            await asyncio.to_thread(threads.shutdown)

    async def _run(self, job: Job, collection: OpenCollection, uploads: list[Upload]) -> None:
        job.update(status="running")
        try:
            plans = await self._plan_all(job, collection, uploads)
            await self._ingest(job, collection, plans)
        except KVBlendError as error:
            job.update(status="failed", error=error.message)
        except Exception:
            logger.exception("an ingest into %r failed", collection.name)
            job.update(status="failed", error="the service failed on this ingest; its log says how")
        finally:
            self._waiting_bytes -= sum(len(upload.data) for upload in uploads)
            self._pending.end(collection.name, job.state.document_ids, job)
        self._metrics.job(job.state.status)

    async def _plan_all(self, job: Job, collection: OpenCollection, uploads: list[Upload]) -> list[IngestPlan]:
        """Parse and split the documents; the job says which ones cannot be. Takes the uploads out of the list."""

        async def plan(upload: Upload) -> IngestPlan | None:
            try:
                async with self._workers:
                    if not self._pending.is_newest(collection.name, upload.id, job):
                        return None
                    return await _in(self._parsing, partial(self._plan, collection.name, upload))
            except KVBlendError as error:
                job.update(failures={**job.state.failures, upload.id: error.message})
                return None

        plans = [plan for plan in await asyncio.gather(*(plan(upload) for upload in uploads)) if plan is not None]
        self._waiting_bytes -= sum(len(upload.data) for upload in uploads)
        uploads.clear()
        job.update(passages_total=len({passage.passage_id for plan in plans for passage in plan.passages}))
        return plans

    def _plan(self, name: str, upload: Upload) -> IngestPlan:
        return self._retriever.plan_ingest(
            name,
            upload.data,
            document_id=upload.id,
            name=upload.name,
            media_type=upload.media_type,
            metadata=upload.metadata,
            split=self._splits.split,
        )

    async def _ingest(self, job: Job, collection: OpenCollection, plans: Sequence[IngestPlan]) -> None:
        """Commit each document and let its passages be encoded while the next ones are embedded."""
        context = collection.encode_context
        distinct = {passage.passage_id: passage.token_ids for plan in plans for passage in plan.passages}
        num_fitting, reason = await self._room.fitting(
            [len(token_ids) for token_ids in distinct.values()],
            await self._encoder.engine_info(),
            quota_bytes=collection.kv_quota_bytes,
        )
        fitting = set(list(distinct)[:num_fitting])
        job.update(passages_deferred=len(distinct) - num_fitting, error=reason)
        encodes: dict[str, asyncio.Task[EncodeResult]] = {}
        preamble = asyncio.create_task(self._encoder.encode(NO_CONTEXT, context.preamble_ids))
        try:
            for plan in plans:
                if not await self._commit(job, collection, plan):
                    continue
                passages = {passage.passage_id: passage.token_ids for passage in plan.passages}
                for passage_id, token_ids in passages.items():
                    if passage_id not in encodes and passage_id in fitting:
                        encodes[passage_id] = asyncio.create_task(self._encode(job, collection, token_ids))
        except asyncio.CancelledError:
            for task in (preamble, *encodes.values()):
                task.cancel()
            raise
        except Exception:  # what was committed is encoded, whatever became of the next document
            await self._encoded(context.hash, preamble, encodes)
            raise
        await self._encoded(context.hash, preamble, encodes)
        num_failed = sum(task.result() is EncodeResult.FAILED for task in encodes.values())
        if num_failed:
            reason = f"{num_failed} passages are searchable but have no KV yet: it is made later, or at their next use"
        failures = job.state.failures
        if failures:
            first = next(iter(failures.values()))
            reason = f"{len(failures)} of {len(job.state.document_ids)} documents were not taken: {first}"
        job.update(status="failed" if failures else "succeeded", error=reason)

    async def _encoded(
        self, context: str, preamble: asyncio.Task[EncodeResult], encodes: Mapping[str, asyncio.Task[EncodeResult]]
    ) -> None:
        """Wait for a job's encodes; the KV of passages that were deleted meanwhile goes."""
        await asyncio.gather(preamble, *encodes.values())
        async with self._deletions.of((context, passage_id) for passage_id in encodes):
            pass

    async def _commit(self, job: Job, collection: OpenCollection, plan: IngestPlan) -> bool:
        """Put a document into the catalog, where that is still wanted and it is not there already; whether it is."""
        name, document_id = collection.name, plan.document.id
        async with self._pending.turn(name, document_id):
            if not self._pending.is_newest(name, document_id, job):
                return False  # deleted, or uploaded anew
            if not await asyncio.to_thread(self._retriever.is_current, plan):
                names = await asyncio.to_thread(self._collections.document_names, name, document_id)
                names |= {(collection.encode_context.hash, passage.passage_id) for passage in plan.passages}
                async with self._deletions.of(names):
                    await _in(self._committing, partial(self._retriever.commit_document, plan))
            self._pending.end(name, [document_id], job)
            return True

    async def _encode(self, job: Job, collection: OpenCollection, token_ids: Tokens) -> EncodeResult:
        result = await self._encoder.encode(collection.encode_context, token_ids, owner=collection.owner)
        state = job.state
        if result is EncodeResult.STORED:
            job.update(
                passages_encoded=state.passages_encoded + 1, tokens_encoded=state.tokens_encoded + len(token_ids)
            )
        elif result is EncodeResult.REUSED:
            job.update(passages_reused=state.passages_reused + 1)
        return result


async def _in(threads: ThreadPoolExecutor, work: Callable[[], Result]) -> Result:
    """Do something in one of these threads. The caller may be cancelled: what has begun is finished all the same."""
    return await asyncio.get_running_loop().run_in_executor(threads, work)
