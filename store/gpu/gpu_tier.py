"""The GPU tier: copies in an arena in one device's memory, inside one worker."""

import logging
import threading
from collections.abc import Collection, Iterator

import torch

from kvblend.core.errors import StoreFullError
from kvblend.core.rest import TierStats
from kvblend.store.eviction import LRU, EvictionPolicy, MemoryIndex
from kvblend.store.format import PassageKVHeader
from kvblend.store.gpu.arena import Arena
from kvblend.store.gpu.arena_eviction import choose_victims
from kvblend.store.gpu.arena_passage import ArenaPassage, Resident
from kvblend.store.gpu.device_stream import DeviceEvent
from kvblend.store.key import PassageKVKey, Variant

__all__ = ["GPUTier"]

log = logging.getLogger(__name__)


class GPUTier:
    """One buffer of at most `budget_bytes` on `device` ("cuda", or "cpu" for tests), where staged layers lie.

    It is this process's own and ends with it, and holds copies of what was loaded alone: nothing is evicted from it to
    anywhere. A hit, `open(key).staged()`, reaches the kernels without touching the host. What is open is not evicted;
    what is deleted or corrupt gives its bytes back when the last who has it open closes it. A passage KV lies
    in one piece, so to make room more may go than its bytes: what `policy` names first, but what would not help
    stays. Safe from several threads.

    Raises InvalidRequestError where the device has not that much memory free, or is of another kind.
    """

    name = "gpu"

    def __init__(self, device: torch.device | str, *, budget_bytes: int, policy: EvictionPolicy | None = None) -> None:
        self.budget_bytes = budget_bytes
        self._arena = Arena(torch.device(device), budget_bytes)
        self.location = str(self._arena.device)
        self.stream = self._arena.stream
        self._listed: dict[PassageKVKey, Resident] = {}
        self._index: MemoryIndex[PassageKVKey] = MemoryIndex(policy or LRU())  # of what is listed; open is pinned
        self._lock = threading.RLock()  # reentrant: who closes a passage may hold it

    def contains(self, key: PassageKVKey) -> bool:
        return key in self._listed

    def open(self, key: PassageKVKey) -> ArenaPassage | None:
        """Hold what lies here under `key`, and mark it as used now; None where nothing does."""
        with self._lock:
            resident = self._listed.get(key)
            if resident is None:
                return None
            self._index.use(key)
            return self._hold(resident)

    def reserve(self, header: PassageKVHeader) -> ArenaPassage | None:
        """Make room for a passage KV that is about to be read; None where none can be made.

        It is written over `stream`, and found from `commit` on. Closed before, it is gone.
        """
        with self._lock:
            try:
                return self._hold(self._reserve(header))
            except StoreFullError as error:
                log.debug("passage KV %s stays off %s: %s", header.key.file_name, self.location, error.message)
                return None

    def commit(self, passage: ArenaPassage, written: DeviceEvent) -> bool:
        """Let lookups find what was reserved, whole once `written` has passed; False where its key is there already."""
        resident = passage.resident
        with self._lock:
            if resident.key in self._listed:
                return False
            resident.written, resident.listed = written, True
            self._listed[resident.key] = resident
            self._index.put(resident.key, resident.num_bytes, cost=resident.header.num_tokens)
            self._index.pin(resident.key, pinned=resident.num_opens > 0)
        return True

    def drop(self, key: PassageKVKey) -> bool:
        """Forget what lies here under `key`; False where nothing does. Who has it open keeps it."""
        with self._lock:
            resident = self._listed.get(key)
            if resident is None:
                return False
            self._unlist(resident)
        return True

    def delete(self, variants: Collection[Variant]) -> int:
        """Forget every head range of passage KV; returns how many."""
        wanted = set(variants)
        with self._lock:
            found = [resident for key, resident in self._listed.items() if key.variant in wanted]
            for resident in found:
                self._unlist(resident)
        return len(found)

    def evict(self, num_bytes: int) -> int:
        """Forget by the policy until at least `num_bytes` are freed; returns bytes freed.

        Raises StoreFullError where too much is open; then nothing was evicted.
        """
        with self._lock:
            chosen = [self._listed[key] for key in self._index.victims(min(num_bytes, self._index.used_bytes))]
            for resident in chosen:
                self._unlist(resident, evicted=True)
        return sum(resident.num_bytes for resident in chosen)

    def keys(self) -> Iterator[PassageKVKey]:
        with self._lock:
            return iter(list(self._listed))

    def stats(self) -> TierStats:
        with self._lock:
            return TierStats(
                name=self.name,
                path=self.location,
                budget_bytes=self.budget_bytes,
                used_bytes=self._arena.ranges.used_bytes,
                num_files=len(self._listed),
                num_pinned=0,
            )

    def check_integrity(self) -> None:
        """Raise AssertionError where an invariant is broken: for tests."""
        with self._lock:
            self._arena.ranges.check_integrity()
            assert self._arena.ranges.used_bytes <= self.budget_bytes
            for key, resident in self._listed.items():
                assert resident.listed and resident.key == key, key
                assert resident.rows.shape == (resident.header.num_layers, resident.header.staged_extent_bytes)

    def close(self) -> None:
        """Forget everything; the memory goes back with the last open passage."""
        with self._lock:
            for resident in list(self._listed.values()):
                self._unlist(resident)
            self._arena.close()

    def _reserve(self, header: PassageKVHeader) -> Resident:
        """A range for such a passage KV, after evicting what must go. The lock is held. Raises StoreFullError."""
        num_bytes = header.num_layers * header.staged_extent_bytes
        if num_bytes > self._arena.ranges.num_bytes:
            raise StoreFullError(
                f"{num_bytes} bytes of one passage KV are over the {self.name} tier's {self.budget_bytes}"
            )
        if not self._arena.ranges.fits(num_bytes):
            victims = choose_victims(
                self._arena.ranges, map(self._listed.__getitem__, self._index.in_order()), num_bytes
            )
            if victims is None:
                raise StoreFullError(
                    f"no {num_bytes} bytes side by side can be freed in the {self.name} tier's {self.budget_bytes}: "
                    "the rest is open or being written"
                )
            for resident in victims:
                self._unlist(resident, evicted=True)
        allocated = self._arena.allocate(header)
        assert allocated is not None
        return Resident(header, *allocated)

    def _hold(self, resident: Resident) -> ArenaPassage:
        resident.num_opens += 1
        if resident.listed:
            self._index.pin(resident.key, pinned=True)
        return ArenaPassage(resident, tier=self.name, on_close=self._let_go, on_quarantine=self._quarantine)

    def _let_go(self, resident: Resident) -> None:
        with self._lock:
            resident.num_opens -= 1
            if resident.listed:
                self._index.pin(resident.key, pinned=resident.num_opens > 0)
            self._arena.note_read()
            self._free_if_gone(resident)

    def _quarantine(self, resident: Resident) -> bool:
        """Drop it: of a damaged copy in device memory there is nothing to look at later."""
        with self._lock:
            if not resident.listed:
                return False
            self._unlist(resident)
        log.warning("passage KV %s on %s is damaged; dropped", resident.key.file_name, self.location)
        return True

    def _unlist(self, resident: Resident, *, evicted: bool = False) -> None:
        del self._listed[resident.key]
        self._index.remove(resident.key, evicted=evicted)
        resident.listed = False
        self._free_if_gone(resident)

    def _free_if_gone(self, resident: Resident) -> None:
        if not resident.listed and resident.num_opens == 0:
            self._arena.ranges.free(resident.start)
