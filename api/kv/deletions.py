"""The deletion of passage KV that no collection holds any more: whatever happens meanwhile, it is finished."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from functools import partial

from kvblend.api.background import end_task
from kvblend.api.collections import Collections
from kvblend.api.kv.completion import KVCompletion
from kvblend.api.kv.encoder import Encoder
from kvblend.api.kv.ledger import DeletionLedger
from kvblend.api.kv.passage_kv import KVName, PassageKV
from kvblend.api.metrics import Metrics
from kvblend.api.prompt.neighbours import VariantLedger

__all__ = ["KVDeletions"]

logger = logging.getLogger(__name__)

SETTLE_EVERY_S = 5.0
SWEEP_EVERY_S = 24 * 3600.0
BATCH = 256


class KVDeletions:
    """Deletes in two steps around the catalog's own: what may become unreferenced is in the ledger before the catalog
    lets go of it, and leaves it when its KV is gone from every tier, or is referenced still.

    What a crash, or a tier that does not answer, leaves in the ledger is settled in the background. A sweep finds what
    no catalog ever let go of: KV of this service's collections that was stored when its document was gone already, and
    what the callers of a tenant supplied that has no key any more.
    """

    def __init__(
        self,
        ledger: DeletionLedger,
        collections: Collections,
        encoder: Encoder,
        passage_kv: PassageKV,
        completion: KVCompletion,
        variants: VariantLedger,
        metrics: Metrics,
        *,
        tenants: Callable[[], Collection[str]],
    ) -> None:
        """`tenants`: those that have a key."""
        self._ledger, self._collections = ledger, collections
        self._encoder, self._passage_kv, self._completion = encoder, passage_kv, completion
        self._variants, self._metrics, self._tenants = variants, metrics, tenants
        self._expected: dict[KVName, int] = {}
        """What the catalog is about to take up or let go of, by how many callers."""
        self._deleting: set[KVName] = set()
        """What was seen to be unreferenced and is on its way out: nothing may take it up before it is gone."""
        self._deleted = asyncio.Condition()
        self._is_late = False
        """Whether a tier did not answer, and something waits for it since."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to settle and sweep in the background."""
        self._task = asyncio.create_task(self._run(), name="kvblend deletions")

    async def close(self) -> None:
        await end_task(self._task)

    @asynccontextmanager
    async def of(self, names: Iterable[KVName]) -> AsyncIterator[None]:
        """Let the catalog take up or let go of passages in the block; then delete the KV that nothing holds any more.

        Their variants, and those of other passages behind them, are looked at with them. No KV of theirs is being
        deleted while the block runs. Where the block raises, or is cancelled, they are looked
        at again in the background.
        """
        own = sorted(set(names).union(await asyncio.to_thread(self._variants_of, set(names))))
        for name in own:
            self._expected[name] = self._expected.get(name, 0) + 1
        try:
            await asyncio.to_thread(self._ledger.add, own)
            async with self._deleted:
                await self._deleted.wait_for(lambda: self._deleting.isdisjoint(own))
            yield
        finally:
            for name in own:
                self._expected[name] -= 1
                if not self._expected[name]:
                    del self._expected[name]
        await self._settle(own)

    async def sweep(self) -> int:
        """Delete the KV of this service that no collection holds, but for what tenants that have a key have beside
        their collections; returns how many passages."""
        num_deleted = 0
        found: set[KVName] = set()
        owners = self._collections.owners
        kept = {owners.of_tenant(tenant) for tenant in self._tenants()}
        pages = self._passage_kv.owned_names(lambda owner: owners.tenant(owner) is not None and owner not in kept)
        while (page := await asyncio.to_thread(next, pages, None)) is not None:
            found |= await asyncio.to_thread(self._unreferenced, page)
        for name in list(found):
            if self._encoder.is_encoding(name):  # its document may be on its way into the catalog
                found.discard(name)
        if found:
            async with self.of(found):
                pass
            num_deleted = len(found)
            self._metrics.swept(num_deleted)
            logger.info("deleted the KV of %d passages that no collection holds", num_deleted)
        return num_deleted

    async def settle(self) -> None:
        """Settle what is in the ledger, but for what a caller is about to."""
        await self._settle(await asyncio.to_thread(self._ledger.pending))

    async def _settle(self, names: Collection[KVName]) -> None:
        """Where a tier does not answer, names stay in the ledger."""
        ours = sorted(names)
        for first in range(0, len(ours), BATCH):
            batch = ours[first : first + BATCH]
            async with self._deleted:
                await self._deleted.wait_for(partial(self._deleting.isdisjoint, batch))
                batch = [name for name in batch if name not in self._expected]
                self._deleting.update(batch)
            try:
                gone = await asyncio.to_thread(self._unreferenced, batch)
                if gone:
                    await self._encoder.drop(gone)
                    await self._passage_kv.delete(await self._completion.fingerprints(), sorted(gone))
                    await asyncio.to_thread(self._variants.remove, gone)
                await asyncio.to_thread(self._ledger.remove, batch)
            except OSError as error:
                level = logging.DEBUG if self._is_late else logging.WARNING  # once, until all is gone
                logger.log(level, "the KV of %d deleted passages is not gone from every tier: %s", len(batch), error)
                self._is_late = True
                return
            finally:
                self._deleting.difference_update(batch)
                async with self._deleted:
                    self._deleted.notify_all()
        if self._is_late and not await asyncio.to_thread(self._ledger.pending):
            self._is_late = False
            logger.warning("the KV of all deleted passages is gone from every tier")

    def _variants_of(self, names: Collection[KVName]) -> set[KVName]:
        """The names of the variants of these passages, and of those behind them."""
        return {each.name for each in self._variants.touching({passage_id for _, passage_id in names})}

    def _unreferenced(self, names: Collection[KVName]) -> set[KVName]:
        """Those that no collection's passages have; a variant needs both of its passages, in one collection."""
        gone = self._collections.unreferenced(names)
        for each in self._variants.of(gone):
            if not self._collections.absent(each.collection, each.variant.passages):
                gone.discard(each.name)
        return gone

    async def _run(self) -> None:
        swept_at: float | None = None
        loop = asyncio.get_running_loop()
        while True:
            try:
                await self.settle()
                if self._completion.is_complete and (swept_at is None or loop.time() > swept_at + SWEEP_EVERY_S):
                    swept_at = loop.time()
                    await self.sweep()
            except Exception:  # this task lives as long as the service
                logger.exception("passage KV could not be deleted; it is tried again")
            await asyncio.sleep(SETTLE_EVERY_S)
