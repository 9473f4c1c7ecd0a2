"""The limits of collections' KV, kept in the background: quotas, and times to live."""

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial

from kvblend.api.background import end_task
from kvblend.api.collections import Collections
from kvblend.api.kv.passage_kv import PassageKV, name_of
from kvblend.api.open_collection import OpenCollection
from kvblend.store import Variant
from kvblend.store.upkeep import idle, owners_of, trim

__all__ = ["KVLimits"]

logger = logging.getLogger(__name__)

TRIM_EVERY_S = 5.0
LOOK_EVERY_S = 60.0
"""For what is idle: every entry of the store is read. Sooner where a time to live is shorter than four times that."""


class KVLimits:
    """Evicts what is over a collection's or a tenant's quota, and deletes what was not used for its time to live."""

    def __init__(
        self, collections: Collections, passage_kv: PassageKV, *, tenant_quota: Callable[[str], int | None]
    ) -> None:
        """`tenant_quota`: bytes that a tenant's KV may take in one tier; None: no bound."""
        self._tenant_quota = tenant_quota
        self._collections, self._passage_kv = collections, passage_kv
        self._looked_at = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to keep them."""
        self._task = asyncio.create_task(self._run(), name="kvblend limits")

    async def close(self) -> None:
        await end_task(self._task)

    async def trim(self) -> int:
        """Bring every collection and tenant to its quota; returns bytes freed."""
        freed = 0
        for collection in await asyncio.to_thread(self._collections.all):
            owner, quota = collection.owner, collection.kv_quota_bytes
            if owner is not None and quota is not None:
                freed += await self._passage_kv.run(partial(trim, owners={owner}, max_bytes=quota))
        by_tenant: dict[str, set[str]] = {}
        for owner in await self._passage_kv.run(owners_of):
            if (tenant := self._collections.owners.tenant(owner)) is not None:
                by_tenant.setdefault(tenant, set()).add(owner)
        for tenant, own in by_tenant.items():
            quota = self._tenant_quota(tenant)
            if quota is not None:
                freed += await self._passage_kv.run(partial(trim, owners=own, max_bytes=quota))
        return freed

    async def expire(self, now_ns: int | None = None) -> int:
        """Delete from every tier what is idle for longer than its collection lets it; returns how many files.

        What another collection's passages are encoded as, too, stays.
        """
        now_ns = time.time_ns() if now_ns is None else now_ns
        lives = await self._lives()
        before_ns = {
            owner: now_ns - int(own.kv_ttl_s * 1e9) for owner, own in lives.items() if own.kv_ttl_s is not None
        }
        if not before_ns:
            return 0
        gone: list[Variant] = []
        for owner, unused in (await self._passage_kv.run(lambda store: idle(store, before_ns))).items():
            names = {name_of(variant) for variant in unused}
            kept = await asyncio.to_thread(self._collections.held_elsewhere, lives[owner].name, names)
            gone += [variant for variant in unused if name_of(variant) not in kept]
        num_files = await self._passage_kv.run(lambda store: store.delete(gone)) if gone else 0
        if num_files:
            logger.info("deleted %d files of KV that no request had used for its collection's time to live", num_files)
        return num_files

    async def _lives(self) -> dict[str, OpenCollection]:
        """Collections that have a time to live, by owner."""
        found = await asyncio.to_thread(self._collections.all)
        return {own.owner: own for own in found if own.owner is not None and own.kv_ttl_s is not None}

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                await self.trim()
                shortest = min((own.kv_ttl_s or 0.0 for own in (await self._lives()).values()), default=None)
                if shortest is not None and loop.time() > self._looked_at + min(LOOK_EVERY_S, shortest / 4):
                    await self.expire()
                    self._looked_at = loop.time()
            except Exception:  # this task lives as long as the service
                logger.exception("the limits of passage KV could not be kept; it is tried again")
            await asyncio.sleep(TRIM_EVERY_S)
