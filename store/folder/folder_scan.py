"""What lies in a folder tier, found by looking: for an index that is made anew."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["PIN_SUFFIX", "QUARANTINE_NAME", "TEMPORARY_SUFFIX", "WHOLE_SUFFIX", "FoundFile", "scan"]

QUARANTINE_NAME = ".quarantine"
TEMPORARY_SUFFIX = ".tmp"
WHOLE_SUFFIX = ".kv"
PIN_SUFFIX = ".kv.pin"

FoundKind = Literal["whole", "temporary", "quarantined"]


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file as found. `name` is relative to `root`; `used_ns` is the file's time.

    A `temporary` one is being written, or its writer died.
    """

    root: Path
    name: str
    kind: FoundKind
    num_bytes: int
    used_ns: int

    @property
    def path(self) -> Path:
        return self.root / self.name

    @property
    def is_pinned(self) -> bool:
        """Whether its marker lies beside it."""
        return self.path.with_name(self.path.name.removesuffix(WHOLE_SUFFIX) + PIN_SUFFIX).exists()


def scan(root: Path) -> Iterator[FoundFile]:
    """Yield every file that counts towards the tier's budget. What comes or goes meanwhile may be left out."""
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            entries = list(os.scandir(root / folder))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            name = f"{folder}{entry.name}"
            try:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{name}/")
                    continue
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            kind = _kind(folder, entry.name)
            if kind is not None and stat.S_ISREG(status.st_mode):
                yield FoundFile(root, name, kind, status.st_size, status.st_mtime_ns)


def _kind(folder: str, name: str) -> FoundKind | None:
    """None for a file that is not ours."""
    if folder.startswith(f"{QUARANTINE_NAME}/"):
        return "quarantined"
    if name.endswith(TEMPORARY_SUFFIX):
        return "temporary"
    return "whole" if name.endswith(WHOLE_SUFFIX) else None
