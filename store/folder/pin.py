"""A pin on a file: a shared flock, which every evictor of every process sees."""

import fcntl
import os
from pathlib import Path
from typing import Self

from kvblend.store.folder.folder_space import open_file
from kvblend.store.folder.tier_lock import is_same_file
from kvblend.store.tier import Pin

__all__ = ["FilePin"]


class FilePin(Pin):
    """Holds an open file's shared lock. The system drops it when the process dies."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path

    @classmethod
    def take(cls, path: Path) -> Self | None:
        """Pin the file at `path`; None where there is none. Waits while an evictor has it in hand."""
        while True:
            fd = open_file(path)
            if fd is None:
                return None
            try:
                fcntl.flock(fd, fcntl.LOCK_SH)
                if is_same_file(fd, path):
                    return cls(fd, path)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def holds(self) -> bool:
        return self._fd >= 0 and is_same_file(self._fd, self._path)

    def release(self) -> None:
        if self._fd >= 0:
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # a forked child may share the lock: closing would not drop it
            os.close(self._fd)
            self._fd = -1
