"""A tier that is a folder of files, shared by any number of processes.

    <root>/.lock                     the tier's lock, and the count of bytes used
    <root>/<model fingerprint>/<encode context>/<2 hex digits>/<passage id>.h<start>-<end>.v1.kv
    <root>/.../.<name>.<random>.tmp  being written; locked by its writer as long as that lives
    <root>/.quarantine/              corrupt files: the first to go when room is needed

Reads take no lock. Files are created, renamed and removed under the tier's lock, and a temporary file has
its full size from the start, so a scan under the lock is the truth. A process that holds several tiers'
locks took the faster tier's first.
"""

import errno
import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kvblend.core.errors import CorruptPassageKVError, InvalidRequestError, StoreFullError
from kvblend.core.rest import TierStats
from kvblend.store.content import CopiedContent, PassageKVContent
from kvblend.store.folder.eviction import EvictionPolicy, LeastRecentlyUsed
from kvblend.store.folder.folder_reader import FolderReader
from kvblend.store.folder.folder_scan import FoundFile, scan
from kvblend.store.folder.folder_space import FolderSpace, open_file
from kvblend.store.folder.passage_file import PassageKVFile
from kvblend.store.folder.pin import FilePin
from kvblend.store.folder.tier_lock import Usage, try_exclusive
from kvblend.store.key import PassageKVKey
from kvblend.store.open_passage import OpenPassageKV
from kvblend.store.tier import Entry, Tier, VerifyReport

__all__ = ["FolderTier"]

log = logging.getLogger(__name__)

SPARE_PART = 64
OUT_OF_SPACE = {errno.ENOSPC, errno.EDQUOT}


class FolderTier(Tier):
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
        self.name = name
        self.root = root
        self.location = str(root)
        self.budget_bytes = budget_bytes
        self.slower = None
        self._space = FolderSpace(
            root, budget_bytes=budget_bytes, durable=durable, policy=policy or LeastRecentlyUsed()
        )
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o770)
            with self._space.hold() as usage:
                self._space.recount(usage)
        except OSError as error:
            raise InvalidRequestError(f"the {name} tier's path {str(root)!r} cannot be written: {error}") from error
        self._reader = FolderReader(name, self._space, direct=direct, num_threads=num_threads)

    def contains(self, key: PassageKVKey) -> bool:
        return _is_file(self._path(key))

    def open(self, key: PassageKVKey) -> PassageKVFile | None:
        path = self._path(key)
        try:
            file = self._reader.open(path, key)
        except CorruptPassageKVError:
            return None
        if file is not None:
            _touch(file.fileno(), time.time_ns())
        return file

    def touch(self, key: PassageKVKey) -> bool:
        if not _is_file(self._path(key)):
            return False
        _touch(self._path(key), time.time_ns())
        return True

    def put(self, content: PassageKVContent, *, used_ns: int | None = None) -> bool:
        path = self._path(content.key)
        if content.num_bytes > self.budget_bytes:
            raise StoreFullError(
                f"{content.num_bytes} bytes of one passage KV are over the {self.name} tier's {self.budget_bytes}"
            )
        used_ns = time.time_ns() if used_ns is None else used_ns
        with self._space.hold() as usage:
            if _is_file(path):
                _touch(path, max(used_ns, path.stat().st_mtime_ns))
                return False
            # What is dropped is dropped in bulk, one scan for many puts; what moves down moves when it must.
            spare_bytes = self.budget_bytes // SPARE_PART if self.slower is None else 0
            self._evict_to(self.budget_bytes - content.num_bytes, usage, spare_bytes=spare_bytes)
            temporary, fd = self._space.create_temporary(path, content.num_bytes, usage)
        try:
            content.write(fd)
            _touch(fd, used_ns)
            if self._space.durable:
                os.fsync(fd)
            with self._space.hold() as usage:
                committed = not _is_file(path)
                if committed:
                    temporary.rename(path)
                else:
                    self._space.remove(temporary, content.num_bytes, usage)
        except BaseException as error:
            with self._space.hold() as usage:
                self._space.remove(temporary, content.num_bytes, usage)
            if isinstance(error, OSError) and error.errno in OUT_OF_SPACE:
                raise StoreFullError(
                    f"the file system at {self.root} has no room for {content.num_bytes} bytes, though the {self.name} "
                    f"tier's budget of {self.budget_bytes} has"
                ) from error
            raise
        finally:
            os.close(fd)
        self._space.sync_folder(path.parent)
        return committed

    def pin(self, key: PassageKVKey) -> FilePin | None:
        return FilePin.take(self._path(key))

    def demote(self, key: PassageKVKey) -> bool:
        path = self._path(key)
        if self.slower is None:
            return False
        with self._space.hold() as usage:
            fd = open_file(path)
            if fd is None:
                return False
            try:
                if not try_exclusive(fd):
                    return False
                status = os.fstat(fd)
                if not self._copy_down(path, key, used_ns=status.st_mtime_ns):
                    return False
                return self._space.remove(path, status.st_size, usage)
            finally:
                os.close(fd)

    def delete(self, *, model_fingerprint: str, encode_context: str, passage_id: str) -> int:
        key = PassageKVKey(model_fingerprint, encode_context, passage_id, 0, 1)
        num_deleted = 0
        with self._space.hold() as usage:
            for file in scan(self.root / key.folder):
                if file.path.name.startswith(f"{passage_id}.h") and file.kind == "whole":
                    num_deleted += self._space.remove(file.path, file.num_bytes, usage)
        self._space.sync_folder(self.root / key.folder)
        return num_deleted

    def quarantine(self, file: OpenPassageKV) -> bool:
        assert isinstance(file, PassageKVFile)
        return self._reader.quarantine(file.path, file.fileno(), "a layer's checksum is wrong")

    def evict(self, num_bytes: int) -> int:
        with self._space.hold() as usage:
            self._space.recount(usage)
            before = usage.used_bytes
            self._evict_to(max(0, before - num_bytes), usage)
            return before - usage.used_bytes

    def entries(self) -> Iterator[Entry]:
        for file in scan(self.root):
            key = PassageKVKey.from_file_name(file.name) if file.kind == "whole" else None
            if key is not None:
                yield Entry(key, file.num_bytes, file.used_ns)

    def verify(self) -> VerifyReport:
        with self._space.hold() as usage:
            files, num_removed = self._space.recount(usage)
        report = VerifyReport(num_temporary_removed=num_removed)
        for found in files:
            key = PassageKVKey.from_file_name(found.name)
            if key is None:
                continue
            report.num_files += 1
            report.num_bytes += found.num_bytes
            if not self._is_sound(found, key):
                report.quarantined += (found.name,)
        return report

    def stats(self) -> TierStats:
        with self._space.hold() as usage:
            files, _ = self._space.recount(usage)
            num_pinned = self._space.num_pinned(files)
            return TierStats(
                name=self.name,
                path=self.location,
                budget_bytes=self.budget_bytes,
                used_bytes=usage.used_bytes,
                num_files=sum(file.kind == "whole" for file in files),
                num_pinned=num_pinned,
            )

    def check_integrity(self) -> None:
        with self._space.hold() as usage:
            counted = usage.used_bytes
            files, num_removed = self._space.recount(usage)
            assert counted >= usage.used_bytes, f"{counted} bytes counted, {usage.used_bytes} used"
            assert usage.used_bytes <= self.budget_bytes, f"{usage.used_bytes} bytes, budget {self.budget_bytes}"
            assert num_removed == 0, f"{num_removed} temporary files left behind"
        report = self.verify()
        assert report.quarantined == (), report.quarantined
        assert report.num_files == sum(file.kind == "whole" for file in files)

    def close(self) -> None:
        self._reader.close()

    def _path(self, key: PassageKVKey) -> Path:
        return self.root / key.file_name

    def _is_sound(self, found: FoundFile, key: PassageKVKey) -> bool:
        """Read a file through; quarantine it where it is not sound. One that is gone meanwhile is."""
        try:
            file = self._reader.open(found.path, key)
        except CorruptPassageKVError:
            return False
        if file is None:
            return True
        with file:
            try:
                for _ in file.extents():
                    pass
            except CorruptPassageKVError as error:
                self._reader.quarantine(found.path, file.fileno(), error.message)
                return False
        return True

    def _evict_to(self, num_bytes: int, usage: Usage, *, spare_bytes: int = 0) -> None:
        """Demote or drop files until the count is at most `num_bytes`. Raises StoreFullError."""
        with self._space.victims(num_bytes, usage, spare_bytes=spare_bytes) as files:
            for file in files:
                key = PassageKVKey.from_file_name(file.name)
                if key is not None and self.slower is not None:
                    self._copy_down(file.path, key, used_ns=file.used_ns)
                self._space.remove(file.path, file.num_bytes, usage)

    def _copy_down(self, path: Path, key: PassageKVKey, *, used_ns: int) -> bool:
        """Make sure that the slower tier has the file; False where it cannot. The tier's lock is held."""
        assert self.slower is not None
        file = self._reader.open_under_lock(path, key)
        if file is None:
            return False
        with file:
            try:
                self.slower.put(CopiedContent(file), used_ns=used_ns)
            except (CorruptPassageKVError, StoreFullError, OSError) as error:
                log.warning("passage KV %s is not demoted: %s", path, error)
                return False
        return True


def _touch(file: Path | int, used_ns: int) -> None:
    with suppress(OSError):  # another user's file: its time is not ours to set
        os.utime(file, ns=(used_ns, used_ns))


def _is_file(path: Path) -> bool:
    """Whether a regular file lies at `path` itself. Anything else there is none of ours and is replaced."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
