"""Complete the KV of passages that a start, a new model or a failure left without it, in the background."""

import asyncio
import contextlib
import logging
from collections.abc import Iterator

from kvblend.api.background import end_task
from kvblend.api.collections import Collections, OpenCollection
from kvblend.api.encode_room import EncodeRoom
from kvblend.api.encoder import NO_CONTEXT, Encoder
from kvblend.api.passage_kv import PassageKV
from kvblend.api.replica import Replicas
from kvblend.core.control import EngineInfo
from kvblend.core.errors import EngineUnavailableError, NotFoundError
from kvblend.core.identity import token_hash
from kvblend.retriever import Catalog

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

    def start(self) -> None:
        """Begin to watch."""
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
        context = collection.encode_context
        batches = self._passages(collection.name)
        num_encoded = 0
        while (batch := await asyncio.to_thread(next, batches, None)) is not None:
            wanted = {(context.hash, id): (context, token_ids) for id, token_ids in batch.items()}
            wanted[NO_CONTEXT.hash, token_hash(context.preamble_ids)] = (NO_CONTEXT, context.preamble_ids)
            missing = await self._passage_kv.missing(info, list(wanted))
            quota = collection.kv_quota_bytes
            left = None if quota is None else quota - await self._passage_kv.owned_bytes(collection.owner)
            num_fitting, _ = await self._room.fitting(
                [len(wanted[name][1]) for name in missing], info, quota_bytes=left
            )
            if num_fitting < len(missing) or (missing and await self._is_full()):
                logger.warning("the store has no room: passages of %r stay without KV until used", collection.name)
                return
            await asyncio.gather(*(self._encoder.encode(*wanted[name], owner=collection.owner) for name in missing))
            num_encoded += len(missing)
        if num_encoded:
            logger.info("completed the KV of %d passages of %r", num_encoded, collection.name)

    def _passages(self, collection: str) -> Iterator[dict[str, tuple[int, ...]]]:
        """Batches of a collection's passages, by id."""
        batch: dict[str, tuple[int, ...]] = {}
        after = None
        while documents := self._catalog.list_documents(collection, limit=100, after=after):
            for document in documents:
                for passage in self._catalog.document_passages(collection, document.id):
                    batch[passage.passage_id] = passage.token_ids
                if len(batch) >= BATCH:
                    yield batch
                    batch = {}
            after = documents[-1].id
        if batch:
            yield batch

    async def _is_full(self) -> bool:
        """Whether more KV would push out what is there."""
        bounded = [tier for tier in await self._passage_kv.stats() if tier.budget_bytes]
        return bounded[-1].used_bytes > FULL_ENOUGH * bounded[-1].budget_bytes
