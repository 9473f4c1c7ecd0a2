"""A folder tier's bytes: creating and removing its files under the lock, counted against the budget."""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from kvblend.core.errors import StoreFullError
from kvblend.store.folder.eviction import EvictionPolicy
from kvblend.store.folder.folder_scan import QUARANTINE_NAME, TEMPORARY_SUFFIX, FoundFile, scan
from kvblend.store.folder.tier_lock import TierLock, Usage, try_exclusive

__all__ = ["READ_FLAGS", "FolderSpace", "open_file"]

READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # the last: a FIFO must not block us


class FolderSpace:
    """The files under `root` and what they may take.

    Methods that take a `usage` are called with it while `hold` is held, and keep it right.
    With `durable`, names survive the machine as well as the process: folders are synced.
    """

    def __init__(self, root: Path, *, budget_bytes: int, durable: bool, policy: EvictionPolicy) -> None:
        self.root = root
        self.budget_bytes = budget_bytes
        self.durable = durable
        self.policy = policy
        self._lock = TierLock(root)

    @contextmanager
    def hold(self) -> Iterator[Usage]:
        """Hold the tier's lock. Not reentrant."""
        with self._lock.hold() as usage:
            if usage.used_bytes < 0:
                self.recount(usage)
            yield usage

    def recount(self, usage: Usage) -> tuple[list[FoundFile], int]:
        """Scan, remove what dead writers left and set the count; returns what lies here and how many were removed."""
        files = []
        num_removed = 0
        for file in scan(self.root):
            if file.kind == "temporary" and _is_abandoned(file.path):
                file.path.unlink(missing_ok=True)
                num_removed += 1
            else:
                files.append(file)
        usage.used_bytes = sum(file.num_bytes for file in files)
        return files, num_removed

    def create_temporary(self, path: Path, num_bytes: int, usage: Usage) -> tuple[Path, int]:
        """Create what becomes `path`: of its full size from the start, and locked while its writer lives.

        Returns its path and its descriptor, which the caller closes.
        """
        self.make_folders(path.parent)
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o660)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.ftruncate(fd, num_bytes)
        except BaseException:
            os.close(fd)
            temporary.unlink(missing_ok=True)
            raise
        usage.used_bytes += num_bytes
        return temporary, fd

    def remove(self, path: Path, num_bytes: int, usage: Usage) -> bool:
        """Remove a file and the folders that it leaves empty; False where it is gone already."""
        try:
            path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            return False
        usage.used_bytes = max(0, usage.used_bytes - num_bytes)
        for folder in path.parents:
            if folder == self.root:
                break
            try:
                folder.rmdir()
            except OSError:
                break
        return True

    def set_aside(self, path: Path) -> Path:
        """Move a corrupt file into quarantine, where it still counts; returns its new path."""
        folder = self.root / QUARANTINE_NAME
        self.make_folders(folder)
        target = folder / f"{path.name}.{secrets.token_hex(4)}"
        path.rename(target)
        return target

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
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    @contextmanager
    def victims(self, num_bytes: int, usage: Usage, *, spare_bytes: int = 0) -> Iterator[list[FoundFile]]:
        """Choose what must go to bring the count down to `num_bytes`, locked against pins during the block.

        Having scanned, up to `spare_bytes` more are chosen, so that the next puts need no scan.
        Quarantined files go here and now. The chosen whole files are the caller's to remove.
        Raises StoreFullError, with nothing chosen, where pins and writers hold too much.
        """
        if usage.used_bytes <= num_bytes:
            yield []
            return
        files, _ = self.recount(usage)
        for file in files:
            if file.kind == "quarantined" and usage.used_bytes > num_bytes:
                self.remove(file.path, file.num_bytes, usage)
        chosen: list[FoundFile] = []
        remaining = usage.used_bytes
        with ExitStack() as locks:
            for file in self.policy.order(file for file in files if file.kind == "whole"):
                if remaining <= num_bytes and num_bytes - remaining + file.num_bytes > spare_bytes:
                    break
                fd = open_file(file.path)
                if fd is None:
                    continue
                locks.callback(os.close, fd)
                if try_exclusive(fd):
                    chosen.append(file)
                    remaining -= file.num_bytes
            if remaining > num_bytes:
                raise StoreFullError(
                    f"{remaining} bytes at {self.root} are pinned or being written; at most {num_bytes} could stay "
                    f"within the budget of {self.budget_bytes}"
                )
            yield chosen

    def num_pinned(self, files: list[FoundFile]) -> int:
        """Count the whole files that someone holds a lock on. Call it under the lock."""
        num = 0
        for file in files:
            fd = open_file(file.path) if file.kind == "whole" else None
            if fd is not None:
                num += not try_exclusive(fd)
                os.close(fd)
        return num


def open_file(path: Path) -> int | None:
    """Open to lock; None where there is no such file, or it is none that we could have written."""
    try:
        return os.open(path, READ_FLAGS)
    except OSError:
        return None


def _is_abandoned(temporary: Path) -> bool:
    fd = open_file(temporary)
    if fd is None:
        return False
    try:
        return try_exclusive(fd)
    finally:
        os.close(fd)
