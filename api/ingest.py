"""Ingest: parse and split while the caller waits, then embed, commit and encode as a job; and the way back."""

import asyncio
import logging
from collections.abc import Sequence

from kvblend.api.collections import Collections, OpenCollection
from kvblend.api.encode_room import EncodeRoom
from kvblend.api.encoder import NO_CONTEXT, Encoder, EncodeResult
from kvblend.api.jobs import Job, Jobs
from kvblend.api.kv_deletions import KVDeletions
from kvblend.api.metrics import Metrics
from kvblend.api.uploads import Upload
from kvblend.core.errors import KVBlendError
from kvblend.retriever import IngestPlan, Retriever

__all__ = ["Ingest"]

logger = logging.getLogger(__name__)

Tokens = tuple[int, ...]


class Ingest:
    """Puts documents into collections and takes them out, text, vectors and KV together."""

    def __init__(
        self,
        retriever: Retriever,
        collections: Collections,
        encoder: Encoder,
        deletions: KVDeletions,
        room: EncodeRoom,
        metrics: Metrics,
    ) -> None:
        self.jobs = Jobs()
        self._retriever = retriever
        self._collections = collections
        self._encoder = encoder
        self._deletions = deletions
        self._room = room
        self._metrics = metrics
        self._running: set[asyncio.Task[None]] = set()

    async def begin(self, name: str, uploads: Sequence[Upload]) -> Job:
        """Plan the ingest of all documents, then start it as a job.

        Raises NotFoundError, ConflictError, InvalidRequestError and UnsupportedDocumentError, and then none of the
        documents is taken.
        """
        collection = await asyncio.to_thread(self._collections.open, name)
        plans = [await asyncio.to_thread(self._plan, name, upload) for upload in uploads]
        job = self.jobs.create(name, [plan.document.id for plan in plans])
        task = asyncio.create_task(self._run(job, collection, plans), name="kvblend ingest")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return job

    async def delete_document(self, name: str, document_id: str) -> None:
        """Delete a document, and the passages and KV that nothing else holds. Raises NotFoundError."""
        async with self._deletions.of(await asyncio.to_thread(self._collections.document_names, name, document_id)):
            await asyncio.to_thread(self._retriever.delete_document, name, document_id)

    async def delete_collection(self, name: str) -> None:
        """Delete a collection with all that is in it. Raises NotFoundError."""
        async with self._deletions.of(await asyncio.to_thread(self._collections.names, name)):
            await asyncio.to_thread(self._retriever.delete_collection, name)

    async def close(self) -> None:
        """Stop the jobs; what they had not encoded is completed after the next start."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _plan(self, name: str, upload: Upload) -> IngestPlan:
        return self._retriever.plan_ingest(
            name,
            upload.data,
            document_id=upload.id,
            name=upload.name,
            media_type=upload.media_type,
            metadata=upload.metadata,
        )

    async def _run(self, job: Job, collection: OpenCollection, plans: Sequence[IngestPlan]) -> None:
        num_passages = len({passage.passage_id for plan in plans for passage in plan.passages})
        job.update(status="running", passages_total=num_passages)
        try:
            await self._ingest(job, collection, plans)
        except KVBlendError as error:
            job.update(status="failed", error=error.message)
        except Exception:
            logger.exception("an ingest into %r failed", collection.name)
            job.update(status="failed", error="the service failed on this ingest; its log says how")
        self._metrics.job(job.state.status)

    async def _ingest(self, job: Job, collection: OpenCollection, plans: Sequence[IngestPlan]) -> None:
        """Commit each document and let its passages be encoded while the next ones are embedded."""
        context = collection.encode_context
        async with asyncio.TaskGroup() as group:
            group.create_task(self._encoder.encode(NO_CONTEXT, context.preamble_ids))
            distinct = {passage.passage_id: passage.token_ids for plan in plans for passage in plan.passages}
            num_fitting, reason = await self._room.fitting(
                [len(token_ids) for token_ids in distinct.values()],
                await self._encoder.engine_info(),
                quota_bytes=collection.kv_quota_bytes,
            )
            fitting = set(list(distinct)[:num_fitting])
            job.update(passages_deferred=len(distinct) - num_fitting, error=reason)
            seen: set[str] = set()
            encodes = []
            for plan in plans:
                if not plan.unchanged:
                    names = await asyncio.to_thread(self._collections.document_names, collection.name, plan.document.id)
                    names |= {(context.hash, passage.passage_id) for passage in plan.passages}
                    async with self._deletions.of(names):
                        await asyncio.to_thread(self._retriever.commit_document, plan)
                passages = {passage.passage_id: passage.token_ids for passage in plan.passages}
                for passage_id, token_ids in passages.items():
                    if passage_id not in seen and passage_id in fitting:
                        seen.add(passage_id)
                        encodes.append(group.create_task(self._encode(job, collection, token_ids)))
        async with self._deletions.of((context.hash, passage_id) for passage_id in seen):
            pass  # those that were deleted while they were encoded go
        num_failed = sum(task.result() is EncodeResult.FAILED for task in encodes)
        if num_failed:
            reason = f"{num_failed} passages are searchable but have no KV yet: it is made later, or at their next use"
        job.update(status="succeeded", error=reason)

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
