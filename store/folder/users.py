"""Who has a folder tier open: the first to come and the last to go know that nobody else writes to it."""

import fcntl
import os
from pathlib import Path

__all__ = ["USERS_NAME", "TierUsers"]

USERS_NAME = ".users"


class TierUsers:
    """A shared flock on a file in the tier's folder, which the system drops when its holder dies.

    `alone`: nobody else had the tier open when this was made; nobody else opens it until `let_in`.
    """

    def __init__(self, root: Path) -> None:
        self._fd = os.open(root / USERS_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o660)
        self.alone = try_exclusive(self._fd)
        if not self.alone:
            self.let_in()

    def let_in(self) -> None:
        """Let others open the tier; waits while another one, who is alone, has not."""
        fcntl.flock(self._fd, fcntl.LOCK_SH)

    def leave(self) -> bool:
        """Whether this is the last one; `close` then lets others in again."""
        return try_exclusive(self._fd)

    def close(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)  # a forked child may share the lock: closing would not drop it
        os.close(self._fd)


def try_exclusive(fd: int) -> bool:
    """Take an exclusive flock if nobody else holds any on this file."""
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
