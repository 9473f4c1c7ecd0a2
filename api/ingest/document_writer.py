"""Documents on their way into a collection: parsed, split, embedded, committed and encoded."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TypeVar

from kvblend.api.collections import Collections
from kvblend.api.ingest.jobs import Job
from kvblend.api.ingest.pending_documents import PendingDocuments
from kvblend.api.ingest.uploads import Upload
from kvblend.api.kv.deletions import KVDeletions
from kvblend.api.kv.encode_room import EncodeRoom
from kvblend.api.kv.encode_run import EncodeRun
from kvblend.api.kv.encoder import Encoder, EncodeResult
from kvblend.api.kv.passage_kv import KVName
from kvblend.api.open_collection import OpenCollection
from kvblend.api.prompt.neighbours import PairLedger
from kvblend.core.errors import KVBlendError
from kvblend.retriever import IngestPlan, Retriever, SplitPool

__all__ = ["DocumentWriter"]

Result = TypeVar("Result")
Encode = asyncio.Task[dict[KVName, EncodeResult]]

MAX_COMMITS = 2
"""At a time: embedding takes all cores by itself."""


class DocumentWriter:
    """Plans and writes the documents of jobs; of two that write one document the newer one does (`pending`)."""

    def __init__(
        self,
        retriever: Retriever,
        splits: SplitPool,
        collections: Collections,
        encoder: Encoder,
        deletions: KVDeletions,
        room: EncodeRoom,
        pairs: PairLedger,
    ) -> None:
        self.pending = PendingDocuments()
        self._retriever = retriever
        self._splits = splits
        self._collections = collections
        self._encoder = encoder
        self._deletions = deletions
        self._room = room
        self._pairs = pairs
        self._parsing = ThreadPoolExecutor(splits.num_workers, thread_name_prefix="kvblend parsing")
        self._workers = asyncio.Semaphore(splits.num_workers)
        self._committing = ThreadPoolExecutor(MAX_COMMITS, thread_name_prefix="kvblend committing")

    def stop(self) -> None:
        """End the parsers: what they are at fails."""
        self._splits.close()

    async def close(self) -> None:
        """End the threads, behind what is being committed."""
        for threads in (self._parsing, self._committing):
            await asyncio.to_thread(threads.shutdown)

    async def plan(self, job: Job, collection: OpenCollection, uploads: Sequence[Upload]) -> list[IngestPlan]:
        """Parse and split the documents; the job says which ones cannot be."""

        async def plan_one(upload: Upload) -> IngestPlan | None:
            try:
                async with self._workers:
                    job.begin()
                    if not self.pending.is_newest(collection.name, upload.id, job):
                        return None
                    return await _in(self._parsing, partial(self._plan, collection.name, upload))
            except KVBlendError as error:
                job.update(failures={**job.state.failures, upload.id: error.message})
                return None

        return [plan for plan in await asyncio.gather(*(plan_one(upload) for upload in uploads)) if plan is not None]

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

    async def write(self, job: Job, collection: OpenCollection, plans: Sequence[IngestPlan]) -> None:
        """Commit each document and let its passages be encoded while the next ones are embedded."""
        runs = [await asyncio.to_thread(_runs, collection, plan) for plan in plans]
        lengths = {name: length for own in runs for run in own for name, length in run.lengths.items()}
        job.update(passages_total=job.state.passages_total + len(lengths))
        num_fitting, reason = await self._room.fitting(
            list(lengths.values()), await self._encoder.engine_info(), quota_bytes=collection.kv_quota_bytes
        )
        left = set(list(lengths)[:num_fitting])
        num_deferred = job.state.passages_deferred + len(lengths) - num_fitting
        job.update(passages_deferred=num_deferred, error=reason or job.state.error)
        preamble = EncodeRun.preamble(collection.encode_context)
        encodes = [asyncio.create_task(self._encoder.encode(preamble, owner=collection.tenant_owner))]
        names: set[KVName] = set()
        try:
            for plan, own in zip(plans, runs, strict=True):
                if not await self._commit(job, collection, plan, own):
                    continue
                for run in own:
                    only = left.intersection(run.names)
                    left -= only
                    names |= only
                    if only:
                        encodes.append(asyncio.create_task(self._encode(job, collection, run, only)))
        except asyncio.CancelledError:
            for task in encodes:
                task.cancel()
            raise
        except Exception:  # what was committed is encoded, whatever became of the next document
            await self._encoded(names, encodes)
            raise
        await self._encoded(names, encodes)
        num_failed = sum(result is EncodeResult.FAILED for task in encodes[1:] for result in task.result().values())
        if num_failed:
            reason = f"{num_failed} passages are searchable but have no KV yet: it is made later, or at their next use"
            job.update(error=reason)

    async def _encoded(self, names: Collection[KVName], encodes: Sequence[Encode]) -> None:
        """Wait for a job's encodes; the KV of passages that were deleted meanwhile goes."""
        ended = await asyncio.gather(*encodes, return_exceptions=True)
        async with self._deletions.of(names):
            pass
        for result in ended:
            if isinstance(result, BaseException):
                raise result

    async def _commit(self, job: Job, collection: OpenCollection, plan: IngestPlan, runs: Sequence[EncodeRun]) -> bool:
        """Put a document into the catalog, where that is still wanted and it is not there already; whether it is."""
        name, document_id = collection.name, plan.document.id
        new = {passage_id: context for run in runs for context, passage_id in run.names}
        async with self.pending.turn(name, document_id):
            if not self.pending.is_newest(name, document_id, job):
                return False  # deleted, or uploaded anew
            if not await asyncio.to_thread(self._retriever.is_current, plan):
                plan = replace(plan, contexts=tuple(new[passage.passage_id] for passage in plan.passages))
                old = await asyncio.to_thread(self._collections.document_names, name, document_id)
                async with self._deletions.of(old.union(name for run in runs for name in run.names)):
                    await _in(self._committing, partial(self._retriever.commit_document, plan))
                await self.forget(name, old)
            self.pending.end(name, [document_id], job)
            return True

    async def forget(self, name: str, names: Collection[KVName]) -> None:
        """Drop the counts of those of these passages that are no more."""
        gone = await asyncio.to_thread(self._collections.absent, name, {passage_id for _, passage_id in names})
        if gone:
            await asyncio.to_thread(self._pairs.forget, name, gone)

    async def _encode(
        self, job: Job, collection: OpenCollection, run: EncodeRun, only: Collection[KVName]
    ) -> dict[KVName, EncodeResult]:
        results = await self._encoder.encode(run, only=only, owner=collection.owner)
        stored = [name for name, result in results.items() if result is EncodeResult.STORED]
        num_reused = sum(result is EncodeResult.REUSED for result in results.values())
        state = job.state
        job.update(
            passages_encoded=state.passages_encoded + len(stored),
            tokens_encoded=state.tokens_encoded + run.num_tokens(stored),
            passages_reused=state.passages_reused + num_reused,
        )
        return results


def _runs(collection: OpenCollection, plan: IngestPlan) -> list[EncodeRun]:
    return collection.runs([passage.token_ids for passage in plan.passages])


async def _in(threads: ThreadPoolExecutor, work: Callable[[], Result]) -> Result:
    """Do something in one of these threads. The caller may be cancelled: what has begun is finished all the same."""
    return await asyncio.get_running_loop().run_in_executor(threads, work)
