"""The GPU tier: an arena in one device's memory, inside one worker."""

import logging
import threading
import time
from collections.abc import Iterator

import torch

from kvblend.core.errors import CorruptPassageKVError, StoreFullError
from kvblend.core.rest import TierStats
from kvblend.store.content import CopiedContent, PassageKVContent
from kvblend.store.format import PassageKVHeader
from kvblend.store.gpu.arena import Arena
from kvblend.store.gpu.arena_eviction import choose_victims
from kvblend.store.gpu.arena_passage import ArenaPassage, ArenaPin, Resident
from kvblend.store.gpu.device_stream import DeviceEvent
from kvblend.store.key import PassageKVKey
from kvblend.store.open_passage import OpenPassageKV
from kvblend.store.tier import Entry, Tier, VerifyReport

__all__ = ["GPUTier"]

log = logging.getLogger(__name__)


class GPUTier(Tier):
    """One buffer of at most `budget_bytes` on `device` ("cuda", or "cpu" for tests), where passage KV lie as extents.

    It is this process's own and ends with it. A hit, `open(key).staged()`, reaches the kernels without touching the
    host. Headers lie in the process, not in the arena: an entry's bytes are its layers' alone. What is open is not
    evicted; what is deleted or corrupt gives its bytes back when the last who has it open closes it. A passage KV lies
    in one piece, so to make room more may go than its bytes: the least recently used first, but what would not help
    stays.

    Raises InvalidRequestError where the device has not that much memory free, or is of another kind.
    """

    def __init__(self, device: torch.device | str, *, budget_bytes: int) -> None:
        self.name = "gpu"
        self.budget_bytes = budget_bytes
        self.slower = None
        self._arena = Arena(torch.device(device), budget_bytes)
        self.location = str(self._arena.device)
        self.stream = self._arena.stream
        self._listed: dict[PassageKVKey, Resident] = {}
        self._lock = threading.RLock()  # reentrant: a demoted passage is read, and closed, under it

    def contains(self, key: PassageKVKey) -> bool:
        return key in self._listed

    def open(self, key: PassageKVKey) -> ArenaPassage | None:
        with self._lock:
            if not self.touch(key):
                return None
            return self._hold(self._listed[key])

    def touch(self, key: PassageKVKey) -> bool:
        return self._date(key, time.time_ns())

    def put(self, content: PassageKVContent, *, used_ns: int | None = None) -> bool:
        used_ns = time.time_ns() if used_ns is None else used_ns
        with self._lock:
            if self._date(content.key, used_ns):
                return False
            passage = self._hold(self._reserve(content.header(), used_ns))
        with passage:
            written = self._arena.fill(passage.resident.extents, content)
            passage.resident.header = content.header()
            return self.commit(passage, written)

    def reserve(self, header: PassageKVHeader) -> ArenaPassage | None:
        """Make room for a passage KV that is about to be read; None where none can be made.

        It is written over `stream`, and found from `commit` on. Closed before, it is gone.
        """
        with self._lock:
            try:
                return self._hold(self._reserve(header, time.time_ns()))
            except StoreFullError as error:
                log.debug("passage KV %s stays off %s: %s", header.key.file_name, self.location, error.message)
                return None

    def commit(self, passage: ArenaPassage, written: DeviceEvent) -> bool:
        """Let lookups find what was reserved, whole once `written` has passed; False where its key is there already."""
        resident = passage.resident
        with self._lock:
            if self._date(resident.key, resident.used_ns):
                return False
            resident.written, resident.listed = written, True
            self._listed[resident.key] = resident
        return True

    def pin(self, key: PassageKVKey) -> ArenaPin | None:
        with self._lock:
            resident = self._listed.get(key)
            if resident is None:
                return None
            resident.num_pins += 1
            return ArenaPin(resident, on_release=self._unpin)

    def demote(self, key: PassageKVKey) -> bool:
        with self._lock:
            resident = self._listed.get(key)
            if resident is None or self.slower is None or resident.is_held or not self._copy_down(resident):
                return False
            self._unlist(resident)
        return True

    def drop(self, key: PassageKVKey) -> bool:
        """Forget what lies here under `key`; False where nothing does, or it is pinned or open."""
        with self._lock:
            resident = self._listed.get(key)
            if resident is None or resident.is_held:
                return False
            self._unlist(resident)
        return True

    def delete(self, *, model_fingerprint: str, encode_context: str, passage_id: str) -> int:
        wanted = (model_fingerprint, encode_context, passage_id)
        with self._lock:
            found = [
                resident
                for key, resident in self._listed.items()
                if (key.model_fingerprint, key.encode_context, key.passage_id) == wanted
            ]
            for resident in found:
                self._unlist(resident)
        return len(found)

    def quarantine(self, file: OpenPassageKV) -> bool:
        """Drop it: of a damaged copy in device memory there is nothing to look at later."""
        assert isinstance(file, ArenaPassage)
        with self._lock:
            if not file.resident.listed:
                return False
            self._unlist(file.resident)
        name = file.header.key.file_name
        log.warning("passage KV %s on %s: a layer's checksum is wrong; dropped", name, self.location)
        return True

    def evict(self, num_bytes: int) -> int:
        with self._lock:
            wanted = min(num_bytes, sum(resident.num_bytes for resident in self._listed.values()))
            freed, chosen = 0, []
            for resident in self._evictable():
                if freed >= wanted:
                    break
                chosen.append(resident)
                freed += resident.num_bytes
            if freed < wanted:
                raise StoreFullError(f"only {freed} bytes on {self.location} are neither pinned nor open, not {wanted}")
            self._evict(chosen)
        return freed

    def entries(self) -> Iterator[Entry]:
        with self._lock:
            residents = list(self._listed.values())
        return iter([Entry(resident.key, resident.num_bytes, resident.used_ns) for resident in residents])

    def verify(self) -> VerifyReport:
        report = VerifyReport()
        with self._lock:
            files = [self._hold(resident) for resident in self._listed.values()]
        for file in files:
            with file:
                report.num_files += 1
                report.num_bytes += file.num_bytes
                try:
                    for _ in file.extents():
                        pass
                except CorruptPassageKVError:
                    self.quarantine(file)
                    report.quarantined += (file.header.key.file_name,)
        return report

    def stats(self) -> TierStats:
        with self._lock:
            return TierStats(
                name=self.name,
                path=self.location,
                budget_bytes=self.budget_bytes,
                used_bytes=self._arena.ranges.used_bytes,
                num_files=len(self._listed),
                num_pinned=sum(resident.num_pins > 0 for resident in self._listed.values()),
            )

    def check_integrity(self) -> None:
        with self._lock:
            self._arena.ranges.check_integrity()
            assert self._arena.ranges.used_bytes <= self.budget_bytes
            for key, resident in self._listed.items():
                assert resident.listed and resident.key == key, key
                assert resident.extents.shape == (resident.header.num_layers, resident.header.extent_bytes)
        report = self.verify()
        assert report.quarantined == (), report.quarantined

    def close(self) -> None:
        """Forget everything; the memory goes back with the last open passage."""
        with self._lock:
            for resident in list(self._listed.values()):
                self._unlist(resident)
            self._arena.close()

    def _date(self, key: PassageKVKey, used_ns: int) -> bool:
        with self._lock:
            resident = self._listed.get(key)
            if resident is None:
                return False
            resident.used_ns = max(used_ns, resident.used_ns)
            return True

    def _reserve(self, header: PassageKVHeader, used_ns: int) -> Resident:
        """A range for such a passage KV, after evicting what must go. The lock is held. Raises StoreFullError."""
        if header.payload_bytes > self._arena.ranges.num_bytes:
            raise StoreFullError(
                f"{header.payload_bytes} bytes of one passage KV are over the {self.name} tier's {self.budget_bytes}"
            )
        if not self._arena.ranges.fits(header.payload_bytes):
            victims = choose_victims(self._arena.ranges, self._evictable(), header.payload_bytes)
            if victims is None:
                raise StoreFullError(
                    f"no {header.payload_bytes} bytes side by side can be freed in the {self.name} tier's "
                    f"{self.budget_bytes}: the rest is pinned, open or being written"
                )
            self._evict(victims)
        allocated = self._arena.allocate(header)
        assert allocated is not None
        return Resident(header, *allocated, used_ns=used_ns)

    def _evictable(self) -> list[Resident]:
        free = [resident for resident in self._listed.values() if not resident.is_held]
        return sorted(free, key=lambda resident: resident.used_ns)

    def _evict(self, residents: list[Resident]) -> None:
        for resident in residents:
            if self.slower is not None:
                self._copy_down(resident)
            self._unlist(resident)

    def _copy_down(self, resident: Resident) -> bool:
        """Make sure that the slower tier has it; False where it cannot. The lock is held."""
        assert self.slower is not None
        with self._hold(resident) as file:
            try:
                self.slower.put(CopiedContent(file), used_ns=resident.used_ns)
            except (CorruptPassageKVError, StoreFullError, OSError) as error:
                log.warning("passage KV %s on %s is not demoted: %s", resident.key.file_name, self.location, error)
                return False
        return True

    def _hold(self, resident: Resident) -> ArenaPassage:
        resident.num_opens += 1
        return ArenaPassage(resident, tier=self.name, on_close=self._let_go)

    def _let_go(self, resident: Resident) -> None:
        with self._lock:
            resident.num_opens -= 1
            self._arena.note_read()
            self._free_if_gone(resident)

    def _unpin(self, resident: Resident) -> None:
        with self._lock:
            resident.num_pins -= 1

    def _unlist(self, resident: Resident) -> None:
        del self._listed[resident.key]
        resident.listed = False
        self._free_if_gone(resident)

    def _free_if_gone(self, resident: Resident) -> None:
        if not resident.listed and resident.num_opens == 0:
            self._arena.ranges.free(resident.start)
