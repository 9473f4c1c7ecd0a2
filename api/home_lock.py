"""One service per home folder: two on the same catalog and index would undo each other's work."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvblend.core.errors import ConflictError

__all__ = ["lock_home"]


@contextmanager
def lock_home(home: Path) -> Iterator[None]:
    """Hold the folder, made where it is not there. Raises ConflictError where another service holds it."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "service.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(f"another kvblend service uses {home}; give this one another KVBLEND_HOME") from error
        yield
