"""What lies in a folder tier: the file system is the index."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["QUARANTINE_NAME", "TEMPORARY_SUFFIX", "WHOLE_SUFFIX", "FoundFile", "scan"]

QUARANTINE_NAME = ".quarantine"
TEMPORARY_SUFFIX = ".tmp"
WHOLE_SUFFIX = ".kv"


@dataclass(frozen=True)
class FoundFile:
    """A file as found. `temporary` ones are being written, or their writer died; `used_ns` is the file's time."""

    path: Path
    name: str
    """Relative to the tier's folder."""
    kind: Literal["whole", "temporary", "quarantined"]
    num_bytes: int
    used_ns: int


def scan(root: Path) -> Iterator[FoundFile]:
    """Yield every file that counts towards the tier's budget. What comes or goes meanwhile may be left out."""
    pending = [root]
    while pending:
        folder = pending.pop()
        try:
            entries = list(os.scandir(folder))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                    continue
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if not stat.S_ISREG(status.st_mode):
                continue
            path = Path(entry.path)
            kind: Literal["whole", "temporary", "quarantined"]
            if folder.name == QUARANTINE_NAME:
                kind = "quarantined"
            elif entry.name.endswith(TEMPORARY_SUFFIX):
                kind = "temporary"
            elif entry.name.endswith(WHOLE_SUFFIX):
                kind = "whole"
            else:
                continue
            name = path.relative_to(root).as_posix()
            yield FoundFile(path, name, kind, status.st_size, status.st_mtime_ns)
