"""Files that a crash or a power cut leaves as they were, or as they were to be."""

import os
import tempfile
from pathlib import Path

__all__ = ["replace_file", "sync_folder"]


def replace_file(path: Path, text: str) -> None:
    """Put a synced file of this text, that all may read, in the file's place. Raises OSError, and changes nothing then.

    The name is durable once the folder is synced, too.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    scratch = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.chmod(0o644)  # a temporary file is its owner's alone; another user's process may be the one that reads
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make a folder's names durable. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
