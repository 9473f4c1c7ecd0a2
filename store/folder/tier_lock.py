"""The lock under which a folder tier's files come and go, and the count of bytes that it guards."""

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LOCK_NAME", "TierLock", "Usage", "is_same_file", "try_exclusive"]

LOCK_NAME = ".lock"
COUNT = struct.Struct("<q")


@dataclass
class Usage:
    """The tier's bytes as counted, while the lock is held; -1 where nobody has counted yet.

    A crash can leave the count too high, never too low: it grows before a file does and shrinks after.
    """

    used_bytes: int


class TierLock:
    """An exclusive flock on a file in the tier's folder.

    It excludes other threads too, since every `hold` opens the file anew. The system drops it when its
    holder dies.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    @contextmanager
    def hold(self) -> Iterator[Usage]:
        """Hold the lock. What the block leaves in the usage is the count from then on. Not reentrant."""
        fd = self._acquire()
        try:
            stored = os.pread(fd, COUNT.size, 0)
            usage = Usage(COUNT.unpack(stored)[0] if len(stored) == COUNT.size else -1)
            before = usage.used_bytes
            try:
                yield usage
            finally:
                if usage.used_bytes != before:
                    os.pwrite(fd, COUNT.pack(usage.used_bytes), 0)
        finally:
            os.close(fd)

    def _acquire(self) -> int:
        path = self._root / LOCK_NAME
        while True:
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o660)
            except FileNotFoundError:  # someone removed the whole folder
                self._root.mkdir(parents=True, exist_ok=True)
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if is_same_file(fd, path):
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)


def try_exclusive(fd: int) -> bool:
    """Take an exclusive flock if nobody holds any on this file."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_same_file(fd: int, path: Path) -> bool:
    """Whether `path` still names the open file."""
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
