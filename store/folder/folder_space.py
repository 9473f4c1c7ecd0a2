"""A folder tier's files: how they come and go, each with its row in the index."""

import fcntl
import logging
import os
import secrets
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kvblend.core.durable_file import sync_folder
from kvblend.core.errors import CorruptPassageKVError
from kvblend.store.eviction.policy import EvictionPolicy
from kvblend.store.folder.folder_scan import PIN_SUFFIX, QUARANTINE_NAME, TEMPORARY_SUFFIX, WHOLE_SUFFIX, scan
from kvblend.store.folder.index import FolderIndex, IndexedFile
from kvblend.store.folder.passage_file import read_header
from kvblend.store.folder.users import TierUsers, is_same_file, try_exclusive
from kvblend.store.format import PassageKVHeader
from kvblend.store.key import PassageKVKey

__all__ = ["READ_FLAGS", "FolderSpace", "Temporary", "is_whole", "open_file"]

READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # the last: a FIFO must not block us


log = logging.getLogger(__name__)

COUNT_AFTER_S = 1.0
LARGEST_RESERVE = 16 << 20
"""Of what a file system has free, that files leave to the index: without room for it nothing could even be deleted."""


class Temporary:
    """A file that is being written: of its full size from the start, and locked while its writer lives."""

    def __init__(self, path: Path, name: str, num_bytes: int) -> None:
        self.path, self.name = path, name
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o660)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX)
            os.ftruncate(self.fd, num_bytes)
        except BaseException:
            os.close(self.fd)
            path.unlink(missing_ok=True)
            raise


class FolderSpace:
    """The files under `root`. Those that take an index are called within one of its transactions.

    With `durable`, names survive the machine as well as the process: folders are synced.
    """

    def __init__(self, root: Path, *, budget_bytes: int, durable: bool, policy: EvictionPolicy) -> None:
        self.root, self.budget_bytes, self.durable = root, budget_bytes, durable
        self.num_stale = 0
        self._uses: list[tuple[str, int]] = []
        self._counting: threading.Timer | None = None
        self._is_due = False
        self._lock = threading.Lock()
        self._users = TierUsers(root)
        self._index = FolderIndex(root, policy, self.reconcile)
        with self._index.transaction() as index:
            if self._users.alone and not index.clean:
                self.reconcile(index)
            else:
                self.remove_abandoned(index)
            index.clean = False
        self._users.let_in()

    @contextmanager
    def change(self) -> Iterator[FolderIndex]:
        """Alone of all threads and processes. Raises OSError where the index cannot be used. Not reentrant."""
        with self._index.transaction() as index:
            self._count_uses(index)
            yield index

    def used(self, names: Iterable[str]) -> None:
        """Whole files are used now. They are counted with this process's next change, or a moment later, since a
        transaction takes as long as reading a megabyte."""
        now_ns = time.time_ns()
        with self._lock:
            self._uses.extend((name, now_ns) for name in names)
            if self._uses and not self._is_due:
                self._is_due = True
                self._counting = threading.Timer(COUNT_AFTER_S, self._count_later)
                self._counting.daemon = True
                self._counting.start()

    def reconcile(self, index: FolderIndex) -> int:
        """Scan, and make the rows what lies here; returns how many files of dead writers were removed."""
        known = {file.name: file for file in index.all()}
        num_removed = 0
        for file in sorted(scan(self.root), key=lambda file: file.used_ns):
            row = known.pop(file.name, None)
            if file.kind == "temporary":
                if _is_abandoned(file.path):
                    file.path.unlink(missing_ok=True)
                    index.forget(file.name)
                    num_removed += 1
                elif row is None:
                    index.add(IndexedFile(file.name, "writing", file.num_bytes, file.used_ns), cost=0.0)
            elif row is None or row.num_bytes != file.num_bytes:
                self._adopt(index, file.name, file.num_bytes, file.used_ns, whole=file.kind == "whole")
            elif row.kind == "whole" and row.pinned != file.is_pinned:
                index.pin(file.name, pinned=file.is_pinned)
        for name in known:
            if not (self.root / name).exists():
                index.forget(name)
        return num_removed

    def adopt(self, index: FolderIndex, path: Path) -> None:
        """Take up a whole file that has no row: its writer died between the two."""
        with suppress(FileNotFoundError):
            status = path.stat()
            name = str(path.relative_to(self.root))
            self._adopt(index, name, status.st_size, status.st_mtime_ns, whole=True)

    def create(self, index: FolderIndex, path: Path, header: PassageKVHeader, num_bytes: int) -> Temporary:
        """Begin to write what becomes `path`."""
        self.make_folders(path.parent)
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
        name = str(temporary.relative_to(self.root))
        created = Temporary(temporary, name, num_bytes)
        index.add(IndexedFile(name, "writing", num_bytes, 0, owner=_owner(header)), cost=_cost(header))
        return created

    def commit(
        self, index: FolderIndex, temporary: Temporary, path: Path, header: PassageKVHeader, *, replaces: bool = False
    ) -> None:
        """Let what was written appear, whole, at `path`: of a file that lay there the use and the pin remain."""
        status = os.fstat(temporary.fd)
        temporary.path.rename(path)
        index.forget(temporary.name)
        name = str(path.relative_to(self.root))
        if replaces and index.resize(name, status.st_size):
            return
        file = IndexedFile(
            name, "whole", status.st_size, status.st_mtime_ns, pinned=_marker(path).exists(), owner=_owner(header)
        )
        index.add(file, cost=_cost(header))

    def has_space(self, num_bytes: int) -> bool:
        """Whether the file system, which others fill too, has room for so many bytes and for the index."""
        status = os.statvfs(self.root)
        reserve = min(LARGEST_RESERVE, status.f_blocks * status.f_frsize // 8)
        return status.f_bavail * status.f_frsize >= num_bytes + reserve

    def _count_later(self) -> None:
        with self._lock:
            self._is_due = False
        try:
            with self.change():
                pass
        except OSError as error:  # a read is none the worse for it
            log.debug("uses of files at %s are not counted: %s", self.root, error)

    def _count_uses(self, index: FolderIndex) -> None:
        """Mark files as used, and take up those that have no row."""
        with self._lock:
            uses, self._uses = self._uses, []
        for name, used_ns in uses:
            for unknown in index.use([name], used_ns=used_ns):
                self.adopt(index, self.root / unknown)

    def remove(self, index: FolderIndex, name: str, *, evicted: bool = False) -> bool:
        """Remove a file, its marker, its row, and the folders that it leaves empty; False where it is gone already."""
        path = self.root / name
        if not evicted:
            _marker(path).unlink(missing_ok=True)
        try:
            path.unlink()
            existed = True
        except (FileNotFoundError, NotADirectoryError):
            existed = False
        index.forget(name, evicted=evicted and existed)
        for folder in path.parents:
            if folder == self.root:
                break
            try:
                folder.rmdir()
            except OSError:
                break
        return existed

    def remove_abandoned(self, index: FolderIndex) -> int:
        """Remove what dead writers left; returns how many files."""
        abandoned = [file.name for file in index.unusual("writing") if _is_abandoned(self.root / file.name)]
        for name in abandoned:
            self.remove(index, name)
        return len(abandoned)

    def set_aside(self, index: FolderIndex, path: Path) -> Path:
        """Move a corrupt file into quarantine, where it still counts; returns its new path."""
        name = str(path.relative_to(self.root))
        target = self.root / QUARANTINE_NAME / f"{name}.{secrets.token_hex(4)}"
        self.make_folders(target.parent)
        path.rename(target)
        _marker(path).unlink(missing_ok=True)
        if index.get(name) is None:
            self.adopt(index, target)
        index.change(name, kind="quarantined", new_name=str(target.relative_to(self.root)))
        index.pin(str(target.relative_to(self.root)), pinned=False)
        return target

    def pin(self, index: FolderIndex, name: str, *, pinned: bool) -> None:
        """Set a file's marker, or take it away."""
        marker = _marker(self.root / name)
        if pinned:
            marker.touch(mode=0o660)
        else:
            marker.unlink(missing_ok=True)
        self.sync_folder(marker.parent)
        index.pin(name, pinned=pinned)

    def make_folders(self, folder: Path) -> None:
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for folder in reversed(missing):
            folder.mkdir(mode=0o770, exist_ok=True)
            self.sync_folder(folder.parent)

    def sync_folder(self, folder: Path) -> None:
        """Make the folder's names durable, where the tier is."""
        if not self.durable:
            return
        with suppress(FileNotFoundError):  # everything in it was removed meanwhile
            sync_folder(folder)

    def close(self) -> None:
        """Leave the folder; the last to leave says that its index is right."""
        if self._counting is not None:
            self._counting.cancel()
            if self._counting.is_alive():
                self._counting.join()
        is_last = self._users.leave()
        with suppress(OSError), self.change() as index:
            if is_last:
                index.clean = not index.unusual("writing") and not index.unusual("leaving")
        self._index.close()
        self._users.close()

    def _adopt(self, index: FolderIndex, name: str, num_bytes: int, used_ns: int, *, whole: bool) -> None:
        path = self.root / name
        if not whole or PassageKVKey.from_file_name(name) is None:  # of another format version, say: the first to go
            self.num_stale += whole
            index.add(IndexedFile(name, "quarantined", num_bytes, used_ns), cost=0.0)
            return
        cost, owner = 0.0, ""
        fd = open_file(path)
        if fd is not None:
            try:
                header = read_header(fd, max_bytes=num_bytes)
                cost, owner = _cost(header), _owner(header)
            except CorruptPassageKVError:  # whoever opens it puts it aside
                pass
            finally:
                os.close(fd)
        pinned = _marker(path).exists()
        index.add(IndexedFile(name, "whole", num_bytes, used_ns, pinned=pinned, owner=owner), cost=cost)


def open_file(path: Path) -> int | None:
    """Open for reading; None where that cannot be. The caller closes it."""
    try:
        return os.open(path, READ_FLAGS)
    except OSError:
        return None


def _is_abandoned(temporary: Path) -> bool:
    """Whether a file's writer is dead. One that was renamed meanwhile is nobody's either."""
    fd = open_file(temporary)
    if fd is None:
        return True
    try:
        return try_exclusive(fd) and is_same_file(fd, temporary)
    finally:
        os.close(fd)


def _marker(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(WHOLE_SUFFIX) + PIN_SUFFIX)


def _cost(header: PassageKVHeader) -> float:
    """What it takes to compute a passage KV again: tokens."""
    return float(header.num_tokens)


def _owner(header: PassageKVHeader) -> str:
    return header.owners[0] if header.owners else ""


def is_whole(path: Path) -> bool:
    """Whether a regular file lies at `path` itself. Anything else there is none of ours and is replaced."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
