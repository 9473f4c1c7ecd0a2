"""Who works on what, among the processes that share a folder."""

import fcntl
import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kvblend.store.folder.users import is_same_file, try_exclusive

__all__ = ["CLAIMS_NAME", "FolderClaims"]

CLAIMS_NAME = ".claims"


class FolderClaims:
    """Locked files in `root`/.claims, which are no part of a tier: the system drops a lock when its holder dies."""

    def __init__(self, root: Path) -> None:
        self._folder = root / CLAIMS_NAME

    def take(self, name: str) -> Callable[[], None] | None:
        """Claim a name; returns what gives it back, or None where somebody has it. Raises OSError."""
        self._folder.mkdir(mode=0o770, exist_ok=True)
        path = self._folder / hashlib.sha256(name.encode()).hexdigest()
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o660)
            if not try_exclusive(fd):
                os.close(fd)
                return None
            if is_same_file(fd, path):
                return lambda: _give_back(fd, path)
            os.close(fd)  # whoever had it has removed it meanwhile


def _give_back(fd: int, path: Path) -> None:
    with suppress(OSError):  # nobody's any more, it is taken up again by the next one
        path.unlink()
    fcntl.flock(fd, fcntl.LOCK_UN)  # a forked child may share the lock: closing would not drop it
    os.close(fd)
