"""Encode the variants that prompts would use most, while no vLLM server has anything else to do."""

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass

from kvblend.api.background import end_task
from kvblend.api.collections import Collections
from kvblend.api.engine.replicas import Replicas
from kvblend.api.kv.deletions import KVDeletions
from kvblend.api.kv.encoder import Encoder, EncodeResult
from kvblend.api.kv.passage_kv import KVName, PassageKV
from kvblend.api.kv.variant_name import variant_name, variant_run
from kvblend.api.metrics import Metrics
from kvblend.api.open_collection import OpenCollection
from kvblend.api.prompt.neighbours import PairCounts, PairLedger, PassageVariant, StoredVariant, VariantLedger
from kvblend.api.quality.live_guard import LiveGuard
from kvblend.core.control import EngineInfo
from kvblend.core.errors import EngineUnavailableError, NotFoundError
from kvblend.retriever import Catalog

__all__ = ["VariantEncodes"]

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
PLAN_EVERY_S = 15.0
SAVE_EVERY_S = 60.0
RETRY_FAILED_S = 600.0

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class _Wanted:
    """A variant that is worth its bytes and is not stored."""

    collection: OpenCollection
    variant: PassageVariant
    name: KVName
    tokens: dict[str, Tokens]


class VariantEncodes:
    """Now and then chooses the most valuable variants of all collections, of a share of the slowest tier together and
    the same share of a collection's quota each, and encodes those that are not stored, one at a time.

    A variant is of two passages of one collection; what a user's prompt says is never in front of what is kept. The
    counts are written to their file here, too.
    """

    def __init__(
        self,
        replicas: Replicas,
        collections: Collections,
        catalog: Catalog,
        passage_kv: PassageKV,
        encoder: Encoder,
        deletions: KVDeletions,
        pairs: PairLedger,
        ledger: VariantLedger,
        metrics: Metrics,
        guard: LiveGuard,
        *,
        share: float,
    ) -> None:
        self._guard = guard
        self._replicas, self._collections, self._catalog = replicas, collections, catalog
        self._passage_kv, self._encoder, self._deletions = passage_kv, encoder, deletions
        self._pairs, self._ledger, self._metrics, self._share = pairs, ledger, metrics, share
        self._queue: deque[_Wanted] = deque()
        self._failed: dict[KVName, float] = {}
        """When each could not be encoded."""
        self._planned_at = self._saved_at = time.monotonic()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin in the background."""
        self._task = asyncio.create_task(self._run(), name="kvblend variants")

    async def close(self) -> None:
        await end_task(self._task)

    async def plan(self) -> int:
        """Choose anew what is to be encoded; returns how many variants. Raises EngineUnavailableError."""
        _, facts = await self._replicas.choose()
        self._queue.clear()
        if facts.info is not None and self._share > 0:
            lately = time.monotonic() - RETRY_FAILED_S
            self._failed = {name: failed_at for name, failed_at in self._failed.items() if failed_at > lately}
            for wanted in await self._missing(facts.info):
                if wanted.name not in self._failed and _length(wanted) < facts.max_model_len:
                    self._queue.append(wanted)
        return len(self._queue)

    async def encode_next(self) -> int:
        """Encode the most valuable variant that is left, and in the same pass that of the passage in front of it where
        it is wanted too; returns how many were stored."""
        wanted = self._queue.popleft()
        first = PassageVariant("", wanted.variant.before)
        also = [each for each in self._queue if (each.collection, each.variant) == (wanted.collection, first)]
        for each in also:
            self._queue.remove(each)
        both = [wanted, *also]
        rows = [StoredVariant(each.collection.name, each.variant, each.name[0]) for each in both]
        names = [each.name for each in both]
        async with self._deletions.of(names):  # what a passage's deletion let go of meanwhile goes behind it
            await asyncio.to_thread(self._ledger.add, rows)
            run = variant_run(wanted.variant, wanted.collection.encode_context, wanted.tokens)
            results = await self._encoder.encode(run, only=names, owner=wanted.collection.owner)
        failed = [name for name, result in results.items() if result is EncodeResult.FAILED]
        self._failed |= dict.fromkeys(failed, time.monotonic())
        num_stored = sum(result is EncodeResult.STORED for result in results.values())
        self._metrics.variants(num_stored)
        return num_stored

    async def _missing(self, info: EngineInfo) -> list[_Wanted]:
        """Of all collections, the most valuable first."""
        tiers = [tier for tier in await self._passage_kv.stats() if tier.budget_bytes]
        budget = int(self._share * tiers[-1].budget_bytes)
        found: list[tuple[float, float, _Wanted]] = []
        for collection in await asyncio.to_thread(self._collections.usable):
            try:
                found += await asyncio.to_thread(self._valued, collection, budget, info)
            except NotFoundError:  # deleted meanwhile
                continue
        found.sort(key=lambda entry: -entry[0])
        chosen: list[_Wanted] = []
        for _, num_bytes, wanted in found:
            budget -= int(num_bytes)
            if budget < 0:
                break
            chosen.append(wanted)
        missing = set(await self._passage_kv.missing(info, [wanted.name for wanted in chosen]))
        return [wanted for wanted in chosen if wanted.name in missing]

    def _valued(self, collection: OpenCollection, budget: int, info: EngineInfo) -> list[tuple[float, float, _Wanted]]:
        """Of one collection the count, bytes and name of each variant that is worth it."""
        if collection.kv_quota_bytes is not None:
            budget = min(budget, int(self._share * collection.kv_quota_bytes))
        known = self._pairs.look(collection.name, PairCounts.passage_ids)
        lengths = self._catalog.passage_lengths(collection.name, known) if known else {}

        def best(counts: PairCounts) -> list[tuple[float, PassageVariant]]:
            chosen = counts.most_valuable(budget, num_tokens=lengths.get, token_bytes=info.token_bytes)
            return [(counts.count(variant), variant) for variant in chosen]

        valued = self._pairs.look(collection.name, best)
        ids = {passage for _, variant in valued for passage in variant.passages}
        tokens = self._catalog.passage_tokens(collection.name, ids) if ids else {}
        return [
            (
                count,
                float(lengths[variant.passage] * info.token_bytes),
                _Wanted(
                    collection,
                    variant,
                    variant_name(variant, collection.encode_context, tokens),
                    {passage: tokens[passage] for passage in variant.passages},
                ),
            )
            for count, variant in valued
            if all(passage in tokens for passage in variant.passages)
        ]

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                now = time.monotonic()
                if now > self._saved_at + SAVE_EVERY_S:
                    self._saved_at = now
                    await asyncio.to_thread(self._pairs.save)
                if self._share > 0 and now > self._planned_at + PLAN_EVERY_S and self._pairs.take_news():
                    await self.plan()
                    self._planned_at = time.monotonic()
                while self._queue and self._replicas.is_idle and not self._guard.is_working:
                    await self.encode_next()
            except EngineUnavailableError:
                self._queue.clear()
            except Exception:  # this task lives as long as the service
                logger.exception("the encoding of variants failed; it is tried again")


def _length(wanted: _Wanted) -> int:
    return wanted.collection.encode_context.num_preamble + sum(map(len, wanted.tokens.values()))
