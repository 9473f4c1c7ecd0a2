"""What an operator does with passage KV: see where it lies, keep it, move it, clear it, check it."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from kvblend.api.collections import Collections
from kvblend.api.kv.completion import KVCompletion
from kvblend.api.kv.encoder import Encoder
from kvblend.api.kv.passage_kv import KVName, PassageKV
from kvblend.api.prompt.neighbours import PairLedger, VariantLedger
from kvblend.core.collection_name import name_in_tenant
from kvblend.core.errors import InvalidRequestError
from kvblend.core.rest import (
    KVCompress,
    KVCompressed,
    KVCount,
    KVFile,
    KVLookup,
    KVMove,
    KVPair,
    KVPairs,
    KVPairSelection,
    KVSelection,
    KVVerifyReport,
    TierStats,
)
from kvblend.store import TieredStore, Variant
from kvblend.store.upkeep import compress

__all__ = ["KVControl"]

Result = TypeVar("Result")


class KVControl:
    """Works on the KV of what a selection names, of every model that this service has served."""

    def __init__(
        self,
        collections: Collections,
        completion: KVCompletion,
        encoder: Encoder,
        passage_kv: PassageKV,
        variants: VariantLedger,
        pairs: PairLedger,
    ) -> None:
        self._collections, self._completion, self._encoder = collections, completion, encoder
        self._passage_kv, self._stored_variants, self._pairs = passage_kv, variants, pairs

    async def stats(self, tenant: str) -> list[TierStats]:
        """What the bounded tiers hold of a tenant's. It reads every entry."""
        tenant_of = self._collections.owners.tenant

        def look(store: TieredStore) -> list[TierStats]:
            found = []
            for tier in store.bounded:
                own = [entry for entry in tier.all_entries() if tenant_of(entry.owner) == tenant]
                update = {
                    "used_bytes": sum(entry.num_bytes for entry in own),
                    "num_files": len(own),
                    "num_pinned": sum(entry.pinned for entry in own),
                    "num_evicted": 0,  # whose they were is not kept
                    "evicted_idle_s": 0.0,
                }
                found.append(tier.stats().model_copy(update=update))
            return found

        return await self._passage_kv.run(look)

    async def lookup(self, selection: KVSelection) -> KVLookup:
        """Every file of the selection's KV, by tier. Raises NotFoundError, InvalidRequestError."""
        _, variants = await self._variants(selection)

        def look(store: TieredStore) -> KVLookup:
            files = []
            for tier in store.bounded:
                for entry in tier.described(variants):
                    key = entry.key
                    files.append(
                        KVFile(
                            tier=tier.name,
                            model_fingerprint=key.model_fingerprint,
                            passage_id=key.passage_id,
                            encode_context=key.encode_context,
                            heads=(key.head_start, key.head_end),
                            num_bytes=entry.num_bytes,
                            used_at=entry.used_ns / 1e9,
                            num_uses=entry.num_uses,
                            pinned=entry.pinned,
                            owner=entry.owner,
                        )
                    )
            held = {file.passage_id for file in files}
            missing = {variant.passage_id for variant in variants} - held
            return KVLookup(files=files, missing=sorted(missing))

        return await self._passage_kv.run(look)

    async def pairs(self, selection: KVPairSelection) -> KVPairs:
        """The heaviest pairs of a collection. Raises NotFoundError."""
        await asyncio.to_thread(self._collections.any, selection.collection)
        found = await asyncio.to_thread(
            self._pairs.look, selection.collection, lambda counts: counts.heaviest(selection.limit)
        )
        return KVPairs(pairs=[KVPair(before=pair.before, passage=pair.passage, count=count) for pair, count in found])

    async def pin(self, selection: KVSelection, *, pinned: bool) -> KVCount:
        """Keep the selection's KV from eviction, or no longer, beyond any restart; counts files."""
        _, variants = await self._variants(selection)
        return await self._count(lambda store: store.pin(variants, pinned=pinned))

    async def move(self, move: KVMove) -> KVCount:
        """Bring KV to the fastest shared tier, or move it to the next slower one; counts files that are there now."""
        _, variants = await self._variants(move)

        def work(store: TieredStore) -> int:
            keys = {entry.key for tier in store.bounded for entry in tier.described(variants)}
            return len(store.promote_many(keys) if move.to == "faster" else store.move_down(keys))

        return await self._count(work)

    async def compress(self, order: KVCompress) -> KVCompressed:
        """Encode the selection's raw files by another codec; they are rounded by it for good."""
        _, variants = await self._variants(order)

        def work(store: TieredStore) -> KVCompressed:
            num_files, saved_bytes = compress(store, variants, order.codec)
            return KVCompressed(num_files=num_files, saved_bytes=saved_bytes)

        return await self._passage_kv.run(work)

    async def clear(self, selection: KVSelection) -> KVCount:
        """Delete the selection's KV from every tier; its documents stay, and are encoded again when they are used.

        Raises InvalidRequestError where other collections hold some of it, too: a passage's KV is all theirs.
        """
        names, variants = await self._variants(selection)
        shared = await asyncio.to_thread(self._collections.held_elsewhere, selection.collection, names)
        if shared:
            raise InvalidRequestError(
                f"{len(shared)} of {len(names)} passages are in other collections with the same encode context: "
                "their KV is these collections' too",
                param="collection",
            )
        behind = await asyncio.to_thread(self._behind, selection.collection, names)
        fingerprints = await self._completion.fingerprints()
        variants += [Variant(fingerprint, *name) for fingerprint in fingerprints for name in behind]
        await self._encoder.drop([*names, *behind])
        return await self._count(lambda store: store.delete(variants))

    async def verify(self) -> KVVerifyReport:
        """Read and check every file of the shared tiers, and put aside what is damaged."""

        def work(store: TieredStore) -> KVVerifyReport:
            report = store.verify()
            return KVVerifyReport(
                num_files=report.num_files,
                num_bytes=report.num_bytes,
                quarantined=list(report.quarantined),
                num_temporary_removed=report.num_temporary_removed,
            )

        return await self._passage_kv.run(work)

    def _behind(self, collection: str, names: Sequence[KVName]) -> list[KVName]:
        """The variants that a collection has of passages, and behind them, and no other collection has."""
        found = self._stored_variants.touching({passage_id for _, passage_id in names})
        others = {each.name for each in found if each.collection != collection}
        return sorted({each.name for each in found}.difference(others, names))

    async def _variants(self, selection: KVSelection) -> tuple[list[KVName], list[Variant]]:
        if selection.document_id is None:
            names = await asyncio.to_thread(self._collections.names, selection.collection)
        else:
            await asyncio.to_thread(self._collections.require_document, selection.collection, selection.document_id)
            names = await asyncio.to_thread(
                self._collections.document_names, selection.collection, selection.document_id
            )
        if selection.passage_ids is not None:
            wanted = set(selection.passage_ids)
            unknown = sorted(wanted - {passage_id for _, passage_id in names})
            if unknown:
                raise InvalidRequestError(
                    f"passage {unknown[0]!r} is not in what is selected of {name_in_tenant(selection.collection)!r}",
                    param="passage_ids",
                )
            names = {name for name in names if name[1] in wanted}
        fingerprints = await self._completion.fingerprints()
        ordered = sorted(names)
        return ordered, [Variant(fingerprint, *name) for fingerprint in fingerprints for name in ordered]

    async def _count(self, work: Callable[[TieredStore], int]) -> KVCount:
        return KVCount(num_files=await self._passage_kv.run(work))
