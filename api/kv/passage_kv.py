"""The service's view of the store: which passages have KV there, and their promotion and deletion."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import TypeVar

from kvblend.core.control import EngineInfo, KVName
from kvblend.core.errors import KVBlendError
from kvblend.core.rest import TierStats
from kvblend.store import Deadline, PassageKVKey, TieredStore, Variant

__all__ = ["KVName", "PassageKV", "name_of"]

Result = TypeVar("Result")

logger = logging.getLogger(__name__)

PAGE = 1024
MAX_PROMOTIONS = 8
"""Requests' at a time."""


def name_of(variant: Variant) -> KVName:
    """What a variant goes by beside its model."""
    return variant.encode_context, variant.passage_id


class PassageKV:
    """Looks passages up by what the engine says of itself. Its methods read folders in a thread, not in the loop."""

    def __init__(self, store: TieredStore, *, deadline_s: float = 0.2) -> None:
        """`deadline_s`: what remote tiers may cost a request."""
        self._store, self._deadline_s = store, deadline_s
        self._promoting: set[KVName] = set()
        self._promotions: set[asyncio.Task[None]] = set()

    async def missing(self, info: EngineInfo, names: Sequence[KVName]) -> list[KVName]:
        """Those passages of which some head range is in no tier."""

        def find(keys: list[PassageKVKey]) -> Set[PassageKVKey]:
            return self._store.lookup_many(keys, Deadline.after(self._deadline_s)).keys()

        return await self._lacking(info, names, find)

    def is_near(self, info: EngineInfo) -> bool:
        """Whether the engine has tiers of this host, as far as it says which it has."""
        return not info.places or not set(info.places).isdisjoint(self._store.places)

    async def nearby(self, info: EngineInfo, names: Sequence[KVName]) -> set[KVName]:
        """Those passages that lie in tiers of this host; no other is asked."""
        return set(names).difference(await self._lacking(info, names, self._store.held_many))

    async def uncommitted(self, info: EngineInfo, names: Sequence[KVName]) -> list[KVName]:
        """Those passages of which some head range is not where the write policy says that it must last."""
        return await self._lacking(info, names, self._store.committed_many)

    def promote_soon(self, info: EngineInfo, names: Sequence[KVName]) -> None:
        """Begin to bring passages to the fastest tier of this host, where the engine reads that; returns at once.

        Each once at a time, and no more at all while many are on their way: they are read from where they lie.
        """
        if info.places and self._store.places[0] not in info.places:
            return  # an engine on another host brings them near itself
        wanted = [name for name in dict.fromkeys(names) if name not in self._promoting]
        if not wanted or len(self._promotions) >= MAX_PROMOTIONS:
            return
        self._promoting.update(wanted)
        task = asyncio.create_task(asyncio.to_thread(self._promote, info, wanted), name="kvblend promote")
        self._promotions.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._promotions.discard(task)
            self._promoting.difference_update(wanted)

        task.add_done_callback(ended)

    async def delete(self, fingerprints: Iterable[str], names: Sequence[KVName]) -> int:
        """Delete passages of every named model from all tiers; returns the number of files."""

        variants = [Variant(fingerprint, *name) for fingerprint in fingerprints for name in names]
        return await asyncio.to_thread(self._store.delete, variants)

    def owned_names(self, is_wanted: Callable[[str], bool]) -> Iterator[list[KVName]]:
        """Pages of the names of KV that lie in a bounded tier and whose owner is wanted."""
        for tier in self._store.bounded:
            after = ""
            while entries := tier.entries(after, PAGE):
                own = {entry.key.variant for entry in entries if is_wanted(entry.owner)}
                yield [name_of(variant) for variant in own]
                after = entries[-1].key.file_name

    async def owned_bytes(self, owner: str | None) -> int:
        """Bytes of a collection's KV in the slowest tier of this host."""
        found = await asyncio.to_thread(self._store.bounded[-1].owned_bytes)
        return 0 if owner is None else found.get(owner, 0)

    async def run(self, work: Callable[[TieredStore], Result]) -> Result:
        """Do something with the store, in a thread."""
        return await asyncio.to_thread(work, self._store)

    async def claim(self, info: EngineInfo, name: KVName, *, seconds: float) -> Callable[[], None] | None:
        """Claim the encode of a passage among all services that share a tier; None where another has it."""
        variant, deadline = Variant(info.model_fingerprint, *name), Deadline.after(self._deadline_s)
        return await asyncio.to_thread(self._store.claim, variant, seconds=seconds, deadline=deadline)

    async def stats(self) -> list[TierStats]:
        """Every tier's, fastest first."""
        return await asyncio.to_thread(self._store.stats)

    async def close(self) -> None:
        await asyncio.gather(*self._promotions)
        self._store.close()

    async def _lacking(
        self, info: EngineInfo, names: Sequence[KVName], find: Callable[[list[PassageKVKey]], Set[PassageKVKey]]
    ) -> list[KVName]:
        keys = {name: _keys(info, name) for name in names}
        found = await asyncio.to_thread(find, [key for own in keys.values() for key in own])
        return [name for name, own in keys.items() if not found >= set(own)]

    def _promote(self, info: EngineInfo, names: Sequence[KVName]) -> None:
        try:
            self._store.promote_many([key for name in names for key in _keys(info, name)])
        except (KVBlendError, OSError) as error:  # the passage is read from where it lies
            logger.warning("promotion stopped: %s", error)


def _keys(info: EngineInfo, name: KVName) -> list[PassageKVKey]:
    context, passage_id = name
    return [PassageKVKey(info.model_fingerprint, context, passage_id, start, end) for start, end in info.head_ranges]
