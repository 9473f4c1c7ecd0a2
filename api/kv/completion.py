"""Complete the KV of passages that a start, a new model or a failure left without it, in the background."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvblend.api.background import end_task
from kvblend.api.collections import Collections
from kvblend.api.engine.replicas import Replicas
from kvblend.api.kv.encode_room import EncodeRoom
from kvblend.api.kv.encode_run import EncodeRun
from kvblend.api.kv.encoder import Encoder
from kvblend.api.kv.passage_kv import PassageKV
from kvblend.api.open_collection import OpenCollection
from kvblend.core.control import EngineInfo
from kvblend.core.errors import EngineUnavailableError, NotFoundError
from kvblend.retriever import Catalog

if TYPE_CHECKING:
    from kvblend.api.kv.deletions import KVDeletions

__all__ = ["KVCompletion"]

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
BATCH = 64
FULL_ENOUGH = 0.95
FINGERPRINTS = "model_fingerprints"


class KVCompletion:
    """Watches for an engine whose passages are not all encoded."""

    def __init__(
        self,
        replicas: Replicas,
        collections: Collections,
        catalog: Catalog,
        passage_kv: PassageKV,
        encoder: Encoder,
        room: EncodeRoom,
    ) -> None:
        self._replicas = replicas
        self._collections = collections
        self._catalog = catalog
        self._passage_kv = passage_kv
        self._encoder = encoder
        self._room = room
        self._completed: tuple[str, int] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, deletions: KVDeletions) -> None:
        """Begin to watch. `deletions` take away what was deleted while it was encoded."""
        self._deletions = deletions
        self._task = asyncio.create_task(self._watch(), name="kvblend completion")

    async def close(self) -> None:
        await end_task(self._task)

    @property
    def is_complete(self) -> bool:
        """Whether all passages were seen to have their KV since the service started."""
        return self._completed is not None

    async def fingerprints(self) -> list[str]:
        """Every model whose KV this service's passages may have: deletion reaches them all."""
        known: set[str] = set(await asyncio.to_thread(self._catalog.get_value, FINGERPRINTS) or [])
        with contextlib.suppress(EngineUnavailableError):
            _, facts = await self._replicas.choose()
            if facts.info is not None:
                known.add(facts.info.model_fingerprint)
        return sorted(known)

    async def _watch(self) -> None:
        while True:
            try:
                _, facts = await self._replicas.choose()
                if facts.info is not None:
                    await self._complete_once(facts.info)
            except EngineUnavailableError:
                pass
            except Exception:  # this task lives as long as the service
                logger.exception("the completion of passage KV failed; it is tried again")
            await asyncio.sleep(LOOK_EVERY_S)

    async def _complete_once(self, info: EngineInfo) -> None:
        """Complete all collections, where the engine is another than last time or encodes were lost since."""
        state = (info.model_fingerprint, self._encoder.num_lost)
        if state == self._completed:
            return
        known = await asyncio.to_thread(self._catalog.get_value, FINGERPRINTS) or []
        if info.model_fingerprint not in known:
            await asyncio.to_thread(self._catalog.put_value, FINGERPRINTS, [*known, info.model_fingerprint])
        collections = [] if self._room.is_lazy else await asyncio.to_thread(self._collections.usable)
        for collection in collections:
            if collection.kv_ttl_s is not None:
                continue  # what was deleted since nobody used it does not come back before somebody does
            with contextlib.suppress(NotFoundError):  # deleted meanwhile
                await self._complete(collection, info)
        self._completed = state

    async def _complete(self, collection: OpenCollection, info: EngineInfo) -> None:
        preamble = EncodeRun.preamble(collection.encode_context)
        batches = self._runs(collection)
        num_encoded = 0
        while (batch := await asyncio.to_thread(next, batches, None)) is not None:
            runs = [preamble, *batch]
            names = {name for run in runs for name in run.names}
            missing = set(await self._passage_kv.missing(info, sorted(names)))
            quota = collection.kv_quota_bytes
            left = None if quota is None else quota - await self._passage_kv.owned_bytes(collection.owner)
            num_fitting, _ = await self._room.fitting([run.num_tokens(missing) for run in runs], info, quota_bytes=left)
            if num_fitting < len(runs) or (missing and await self._is_full()):
                logger.warning("the store has no room: passages of %r stay without KV until used", collection.name)
                return
            await asyncio.gather(
                *(
                    self._encoder.encode(
                        run, only=missing, owner=collection.tenant_owner if run is preamble else collection.owner
                    )
                    for run in runs
                    if not missing.isdisjoint(run.names)
                )
            )
            async with self._deletions.of(missing):
                pass
            num_encoded += len(missing)
        if num_encoded:
            logger.info("completed the KV of %d passages of %r", num_encoded, collection.name)

    def _runs(self, collection: OpenCollection) -> Iterator[list[EncodeRun]]:
        """Batches of what a collection's documents are encoded by."""
        batch: list[EncodeRun] = []
        after = None
        while documents := self._catalog.list_documents(collection.name, limit=100, after=after):
            for document in documents:
                batch += self._collections.document_runs(collection.name, document.id)
                if sum(len(run.parts) for run in batch) >= BATCH:
                    yield batch
                    batch = []
            after = documents[-1].id
        if batch:
            yield batch

    async def _is_full(self) -> bool:
        """Whether more KV would push out what is there."""
        bounded = [tier for tier in await self._passage_kv.stats() if tier.budget_bytes]
        return bounded[-1].used_bytes > FULL_ENOUGH * bounded[-1].budget_bytes
