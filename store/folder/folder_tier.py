"""A tier that is a folder of files, shared by any number of processes.

    <root>/.users                  locked by everyone who has the tier open
    <root>/.index.sqlite3          what lies here, how it is used, and what goes first: made anew by a scan where lost
    <root>/<model fingerprint>/<2 hex digits>/<passage id>/<encode context>.h<start>-<end>.v2.kv
    <root>/.../<encode context>.h<start>-<end>.v2.kv.pin      not to be evicted
    <root>/.../.<name>.<random>.tmp                           being written; locked by its writer as long as that lives
    <root>/.quarantine/                                       corrupt files: the first to go when room is needed

Reads take no lock. Files are created, renamed and removed within the index's transactions.
"""

import errno
import logging
import os
import stat
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from kvblend.core.errors import CorruptPassageKVError, InvalidRequestError, StoreFullError
from kvblend.core.rest import TierStats
from kvblend.store.content import CopiedContent, PassageKVContent
from kvblend.store.deadline import NEVER, Deadline
from kvblend.store.eviction import LRU, EvictionPolicy
from kvblend.store.folder.folder_reader import FolderReader
from kvblend.store.folder.folder_scan import QUARANTINE_NAME
from kvblend.store.folder.folder_space import FolderSpace, Temporary
from kvblend.store.folder.index import FolderIndex, IndexedFile
from kvblend.store.folder.passage_file import PassageKVFile
from kvblend.store.key import PassageKVKey, Variant, passage_folder
from kvblend.store.tier import BoundedTier, Entry, VerifyReport

__all__ = ["FolderTier"]

log = logging.getLogger(__name__)

OUT_OF_SPACE = {errno.ENOSPC, errno.EDQUOT}


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
        except OSError as error:
            raise InvalidRequestError(f"the {name} tier's path {str(root)!r} cannot be written: {error}") from error
        if self._space.num_stale:
            log.warning("%d files of another format at %s are of no use and go first", self._space.num_stale, root)
        self._reader = FolderReader(name, self._space, direct=direct, num_threads=num_threads)

    def lookup_many(self, keys: Collection[PassageKVKey], deadline: Deadline) -> set[PassageKVKey]:
        return {key for key in keys if _is_file(self._path(key))}

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
        there = [key for key in keys if _is_file(self._path(key))]
        for key in there:
            _set_time(self._path(key))
        try:
            if there:
                with self._space.change() as index:
                    self._use(index, there)
        except OSError as error:  # a read is none the worse for it
            log.debug("the %s tier's uses are not counted: %s", self.name, error)
        return set(there)

    def put(self, content: PassageKVContent, deadline: Deadline = NEVER) -> bool:
        path, header, num_bytes = self._path(content.key), content.header, content.num_bytes
        if num_bytes > self.budget_bytes:
            raise StoreFullError(
                f"{num_bytes} bytes of one passage KV are over the {self.name} tier's {self.budget_bytes}"
            )
        temporary = None
        while temporary is None:
            with self._space.change() as index:
                if _is_file(path):
                    self._use(index, [content.key])
                    return False
                victims = self._victims(index, num_bytes)
                if not victims:
                    temporary = self._space.create(index, path, header, num_bytes)
            self._evict(victims)
        try:
            content.write(temporary.fd)
            if self._space.durable:
                os.fsync(temporary.fd)
            committed = self._commit(temporary, path, content)
        except BaseException as error:
            with self._space.change() as index:
                self._space.remove(index, temporary.name)
            if isinstance(error, OSError) and error.errno in OUT_OF_SPACE:
                raise StoreFullError(
                    f"the file system at {self.root} has no room for {num_bytes} bytes, though the {self.name} "
                    f"tier's budget of {self.budget_bytes} has"
                ) from error
            raise
        finally:
            os.close(temporary.fd)
        self._space.sync_folder(path.parent)
        return committed

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
        folder = passage_folder(model_fingerprint, passage_id)
        try:
            names = [entry.name for entry in os.scandir(self.root / folder)]
        except (FileNotFoundError, NotADirectoryError):
            return set()
        keys = (PassageKVKey.from_file_name(f"{folder}/{name}") for name in names)
        return {key for key in keys if key is not None}

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
            if self.slower is None or not self._copy_down(key):
                continue
            with self._space.change() as index:
                file = index.get(key.file_name)
                if (file is None or not file.pinned) and self._space.remove(index, key.file_name):
                    moved.add(key)
        return moved

    def evict(self, num_bytes: int) -> int:
        with self._space.change() as index:
            used = index.totals().used_bytes
            victims = index.choose(min(num_bytes, used))
        return self._evict(victims)

    def entries(self, after: str = "", limit: int | None = None) -> Sequence[Entry]:
        with self._space.change() as index:
            files = index.page(after, -1 if limit is None else limit)
        return [_entry(file) for file in files if PassageKVKey.from_file_name(file.name) is not None]

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
            totals = index.totals()
        return TierStats(
            name=self.name,
            path=self.location,
            budget_bytes=self.budget_bytes,
            used_bytes=totals.used_bytes,
            num_files=totals.num_files,
            num_pinned=totals.num_pinned,
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

    def _keys_of(self, variant: Variant) -> list[PassageKVKey]:
        keys = self.variants(variant.model_fingerprint, variant.passage_id)
        return sorted(key for key in keys if key.variant == variant)

    def _names_of(self, index: FolderIndex, variant: Variant) -> list[str]:
        """Whole files of a variant, and what lies in quarantine of it."""
        aside = index.under(f"{QUARANTINE_NAME}/{variant.name}.h", ["quarantined"])
        return [*(key.file_name for key in self._keys_of(variant)), *(file.name for file in aside)]

    def _use(self, index: FolderIndex, keys: Iterable[PassageKVKey]) -> None:
        names = [key.file_name for key in keys]
        unknown = index.use(names)
        for name in unknown:
            self._space.adopt(index, self.root / name)

    def _victims(self, index: FolderIndex, num_bytes: int) -> list[IndexedFile]:
        """What must go before `num_bytes` more fit. Raises StoreFullError."""
        over = index.totals().used_bytes + num_bytes - self.budget_bytes
        if over > 0 and self._space.remove_abandoned(index):
            over = index.totals().used_bytes + num_bytes - self.budget_bytes
        return index.choose(over) if over > 0 else []

    def _evict(self, victims: Sequence[IndexedFile]) -> int:
        """Move chosen files down, where they do not lie there, or drop them; returns bytes freed here."""
        for file in victims:
            key = PassageKVKey.from_file_name(file.name)
            if self.slower is not None and key is not None and not self.slower.lookup_many([key], NEVER):
                self._copy_down(key)
        with self._space.change() as index:
            return sum(file.num_bytes for file in victims if self._leave(index, file))

    def _leave(self, index: FolderIndex, file: IndexedFile) -> bool:
        """Remove a chosen file, unless it was pinned meanwhile."""
        row = index.get(file.name)
        if row is not None and row.pinned:
            index.change(file.name, kind="whole")
            return False
        return self._space.remove(index, file.name, evicted=file.kind != "quarantined")

    def _commit(self, temporary: Temporary, path: Path, content: PassageKVContent) -> bool:
        with self._space.change() as index:
            if _is_file(path):
                self._space.remove(index, temporary.name)
                return False
            self._space.commit(index, temporary, path, content.header)
            return True

    def _copy_down(self, key: PassageKVKey) -> bool:
        """Make sure that the slower tier has the file; False where it cannot, or it is not here."""
        assert self.slower is not None
        try:
            file = self._reader.open(self._path(key), key)
            if file is None:
                return False
            with file:
                self.slower.put(CopiedContent(file), NEVER)
        except (CorruptPassageKVError, StoreFullError, OSError) as error:
            log.warning("passage KV %s is not moved down from the %s tier: %s", key.file_name, self.name, error)
            return False
        return True

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


def _is_file(path: Path) -> bool:
    """Whether a regular file lies at `path` itself. Anything else there is none of ours and is replaced."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
