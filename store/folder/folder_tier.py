"""A tier that is a folder of files, shared by any number of processes.

    <root>/.users                  locked by everyone who has the tier open
    <root>/.index.sqlite3          what lies here, how it is used, and what goes first: made anew by a scan where lost
    <root>/<model fingerprint>/<2 hex digits>/<passage id>/<encode context>.h<start>-<end>.v2.kv
    <root>/.../<encode context>.h<start>-<end>.v2.kv.pin      not to be evicted
    <root>/.../.<name>.<random>.tmp                           being written; locked by its writer as long as that lives
    <root>/.claims/                                           locked by who encodes a passage
    <root>/.quarantine/                                       corrupt files: the first to go when room is needed

Reads take no lock. Files are created, renamed and removed within the index's transactions.
"""

import logging
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from kvblend.core.errors import CorruptPassageKVError, InvalidRequestError
from kvblend.core.rest import TierStats
from kvblend.store.content import PassageKVContent
from kvblend.store.deadline import NEVER, Deadline
from kvblend.store.eviction import LRU, EvictionPolicy
from kvblend.store.folder.claims import FolderClaims
from kvblend.store.folder.folder_eviction import FolderEviction
from kvblend.store.folder.folder_reader import FolderReader
from kvblend.store.folder.folder_scan import QUARANTINE_NAME, WHOLE_SUFFIX
from kvblend.store.folder.folder_space import FolderSpace, is_whole
from kvblend.store.folder.folder_writer import FolderWriter
from kvblend.store.folder.index import FolderIndex, IndexedFile
from kvblend.store.folder.passage_file import PassageKVFile
from kvblend.store.folder.place import place_of
from kvblend.store.key import FILE_ENDING, PassageKVKey, Variant, passage_folder
from kvblend.store.tier import BoundedTier, Entry, VerifyReport

__all__ = ["FolderTier"]

log = logging.getLogger(__name__)


class FolderTier(BoundedTier):
    """Files in `root`, an absolute path, at most `budget_bytes` of them.

    With `durable`, a file survives the machine as well as the process that wrote it. With `direct`, reads
    go past the page cache where the file system allows it; `num_threads` threads share a large read.
    Raises InvalidRequestError where `root` is relative or cannot be written.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        *,
        budget_bytes: int,
        durable: bool,
        direct: bool = False,
        num_threads: int = 1,
        policy: EvictionPolicy | None = None,
    ) -> None:
        if not root.is_absolute():
            raise InvalidRequestError(f"the {name} tier's path {str(root)!r} is relative; it must be absolute")
        self.name, self.root, self.location, self.budget_bytes = name, root, str(root), budget_bytes
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o770)
            self._space = FolderSpace(root, budget_bytes=budget_bytes, durable=durable, policy=policy or LRU())
            self.place = place_of(root)
        except OSError as error:
            raise InvalidRequestError(f"the {name} tier's path {str(root)!r} cannot be written: {error}") from error
        if self._space.num_stale:
            log.warning("%d files of another format at %s are of no use and go first", self._space.num_stale, root)
        self._reader = FolderReader(name, self._space, direct=direct, num_threads=num_threads)
        self._claims = FolderClaims(root)
        self._eviction = FolderEviction(name, self._space, self._reader)
        self._writer = FolderWriter(name, self._space, self._eviction)

    @property
    def slower(self) -> BoundedTier | None:
        return self._eviction.slower

    @slower.setter
    def slower(self, tier: BoundedTier | None) -> None:
        self._eviction.slower = tier

    def lookup_many(self, keys: Collection[PassageKVKey], deadline: Deadline) -> set[PassageKVKey]:
        return {key for key in keys if is_whole(self._path(key))}

    def fetch_many(self, keys: Collection[PassageKVKey], deadline: Deadline) -> Mapping[PassageKVKey, PassageKVFile]:
        files = {}
        for key in dict.fromkeys(keys):
            with suppress(CorruptPassageKVError):
                file = self._reader.open(self._path(key), key)
                if file is not None:
                    files[key] = file
        self.touch_many(files)
        return files

    def touch_many(self, keys: Collection[PassageKVKey]) -> set[PassageKVKey]:
        there = [key for key in keys if is_whole(self._path(key))]
        for key in there:
            _set_time(self._path(key))
        self._space.used(key.file_name for key in there)
        return set(there)

    def put(self, content: PassageKVContent, deadline: Deadline = NEVER) -> bool:
        return self._writer.put(content)

    def replace(self, content: PassageKVContent) -> bool:
        return self._writer.replace(content)

    def delete(self, variants: Collection[Variant], deadline: Deadline = NEVER) -> int:
        folders = set()
        num_deleted = 0
        with self._space.change() as index:
            for variant in variants:
                for name in self._names_of(index, variant):
                    num_deleted += self._space.remove(index, name)
                    folders.add((self.root / name).parent)
        for folder in folders:
            self._space.sync_folder(folder)
        return num_deleted

    def variants(self, model_fingerprint: str, passage_id: str, deadline: Deadline = NEVER) -> set[PassageKVKey]:
        names = self._names_in(passage_folder(model_fingerprint, passage_id))
        keys = (PassageKVKey.from_file_name(name) for name in names)
        return {key for key in keys if key is not None}

    def claim(self, variant: Variant, seconds: float, deadline: Deadline) -> Callable[[], object] | None:
        try:
            return self._claims.take(variant.name)
        except OSError as error:
            log.debug("the %s tier has no claim on %s: %s", self.name, variant.name, error)
            return lambda: None

    def has_room(self, num_bytes: int) -> bool:
        with self._space.change() as index:
            return index.totals().used_bytes + num_bytes <= self.budget_bytes

    def pin(self, variants: Collection[Variant], *, pinned: bool) -> int:
        num_pinned = 0
        with self._space.change() as index:
            for variant in variants:
                for key in self._keys_of(variant):
                    if index.get(key.file_name) is None:
                        self._space.adopt(index, self._path(key))
                    self._space.pin(index, key.file_name, pinned=pinned)
                    num_pinned += 1
        return num_pinned

    def move_down(self, keys: Collection[PassageKVKey]) -> set[PassageKVKey]:
        moved = set()
        for key in keys:
            if not self._eviction.copy_down(key):
                continue
            with self._space.change() as index:
                file = index.get(key.file_name)
                if (file is None or not file.pinned) and self._space.remove(index, key.file_name):
                    moved.add(key)
        return moved

    def evict(self, num_bytes: int, *, owner: str | None = None) -> int:
        with self._space.change() as index:
            there = index.totals().used_bytes if owner is None else index.evictable_bytes(owner)
            victims = index.choose(min(num_bytes, there), owner=owner)
        return self._eviction.evict(victims)

    def entries(self, after: str = "", limit: int | None = None) -> Sequence[Entry]:
        with self._space.change() as index:
            files = index.page(after, -1 if limit is None else limit, ending=FILE_ENDING)
        return [_entry(file) for file in files]

    def described(self, variants: Collection[Variant]) -> Sequence[Entry]:
        with self._space.change() as index:
            files = [index.get(key.file_name) for variant in variants for key in self._keys_of(variant)]
        return [_entry(file) for file in files if file is not None]

    def owned_bytes(self) -> Mapping[str, int]:
        with self._space.change() as index:
            return index.owned_bytes()

    def verify(self) -> VerifyReport:
        report = VerifyReport()
        with self._space.change() as index:
            report.num_temporary_removed = self._space.reconcile(index)
        for entry in self.all_entries():
            report.num_files += 1
            report.num_bytes += entry.num_bytes
            if not self._is_sound(entry.key):
                report.quarantined += (entry.key.file_name,)
        return report

    def stats(self) -> TierStats:
        with self._space.change() as index:
            totals, evictions = index.totals(), index.evictions()
        return TierStats(
            name=self.name,
            path=self.location,
            budget_bytes=self.budget_bytes,
            used_bytes=totals.used_bytes,
            num_files=totals.num_files,
            num_pinned=totals.num_pinned,
            num_evicted=evictions.num_files,
            evicted_idle_s=evictions.idle_s,
        )

    def check_integrity(self) -> None:
        before = self.stats()
        assert before.used_bytes <= self.budget_bytes, f"{before.used_bytes} bytes, budget {self.budget_bytes}"
        report = self.verify()
        after = self.stats()
        assert before.used_bytes >= after.used_bytes, f"{before.used_bytes} bytes counted, {after.used_bytes} used"
        assert report.num_temporary_removed == 0, f"{report.num_temporary_removed} temporary files left behind"
        assert report.quarantined == (), report.quarantined
        assert report.num_files == before.num_files == after.num_files

    def close(self) -> None:
        self._reader.close()
        self._space.close()

    def _path(self, key: PassageKVKey) -> Path:
        return self.root / key.file_name

    def _names_in(self, folder: str) -> list[str]:
        try:
            return [f"{folder}/{entry.name}" for entry in os.scandir(self.root / folder)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _keys_of(self, variant: Variant) -> list[PassageKVKey]:
        keys = self.variants(variant.model_fingerprint, variant.passage_id)
        return sorted(key for key in keys if key.variant == variant)

    def _names_of(self, index: FolderIndex, variant: Variant) -> list[str]:
        """Whole files of a variant, in the formats of other versions too, those that a delete which was cut short left
        to the index alone, and what lies in quarantine of it."""
        names = set[str]()
        for start in (f"{variant.name}.h", f"{variant.name_in_format_1}.h"):
            there = self._names_in(start.rpartition("/")[0])
            names |= {name for name in there if name.startswith(start) and name.endswith(WHOLE_SUFFIX)}
            known = index.under(start) + index.under(f"{QUARANTINE_NAME}/{start}", ["quarantined"])
            names |= {file.name for file in known}
        return sorted(names)

    def _is_sound(self, key: PassageKVKey) -> bool:
        """Read a file through; quarantine it where it is not sound. One that is gone meanwhile is."""
        try:
            file = self._reader.open(self._path(key), key)
            if file is None:
                return True
            with file:
                try:
                    for _ in file.extents():
                        pass
                except CorruptPassageKVError:
                    file.quarantine()
                    raise
        except CorruptPassageKVError:
            return False
        return True


def _entry(file: IndexedFile) -> Entry:
    key = PassageKVKey.from_file_name(file.name)
    assert key is not None
    return Entry(key, file.num_bytes, file.used_ns, file.num_uses, file.pinned, file.owner)


def _set_time(path: Path) -> None:
    with suppress(OSError):  # another user's file: its time is not ours to set
        os.utime(path, ns=(time.time_ns(),) * 2)
