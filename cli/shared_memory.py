"""Shared memory that a server of several processes leaves behind where it is killed.

Whoever makes a segment in /dev/shm unlinks it at its end; a process that is killed does not, and the segment keeps its
memory until the machine starts again: 240 MB for a vLLM server. So what the server's processes have mapped is noted
while they live, in a file that outlives us, too, and unlinked when nobody maps it any more.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["LeftMemory"]

SHM = Path("/dev/shm")
PROC = Path("/proc")
LAST_BREATH_S = 2.0
Segment = tuple[str, int]
"""Name and inode: a name that is used again is another segment."""


class LeftMemory:
    """The segments of one server, noted in `path`. Without /proc, as on a Mac, it does nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._noted = set(_read(path))

    def note(self, session: int) -> None:
        """Note what the processes of this session map now, beside what was noted before."""
        noted = self._noted | {segment for pid in _processes(session) for segment in _mapped(pid)}
        if noted != self._noted:
            self._noted = noted
            self._path.write_text("".join(f"{inode} {name}\n" for name, inode in sorted(noted)))

    def unlink(self) -> None:
        """Unlink what was noted and nobody maps any more; the rest stays noted. Waits a little for processes that were
        killed just now."""
        if not self._noted:
            return
        in_use = _in_use()
        until = time.monotonic() + LAST_BREATH_S
        while self._noted & in_use and time.monotonic() < until:
            time.sleep(0.05)
            in_use = _in_use()
        for name, inode in self._noted - in_use:
            with contextlib.suppress(OSError):  # its maker has unlinked it, or it is another user's
                if (SHM / name).stat().st_ino == inode:
                    (SHM / name).unlink()
        self._noted &= in_use
        self._path.write_text("".join(f"{inode} {name}\n" for name, inode in sorted(self._noted)))
        if not self._noted:
            self._path.unlink()


def _read(path: Path) -> Iterator[Segment]:
    if path.exists():
        for line in path.read_text().splitlines():
            inode, _, name = line.partition(" ")
            if inode.isdigit() and name and "/" not in name:
                yield name, int(inode)


def _in_use() -> set[Segment]:
    return {segment for pid in _processes() for segment in _mapped(pid)}


def _processes(session: int | None = None) -> Iterator[int]:
    """All processes, or those of a session."""
    if not PROC.is_dir():
        return
    for entry in PROC.iterdir():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if entry.name.isdigit() and (session is None or os.getsid(int(entry.name)) == session):
                yield int(entry.name)


def _mapped(pid: int) -> Iterator[Segment]:
    """The files directly in /dev/shm that a process maps; the folders there are tiers of passage KV."""
    with contextlib.suppress(OSError):
        for line in (PROC / str(pid) / "maps").read_text(errors="replace").splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5].startswith(f"{SHM}/") and not fields[5].endswith(" (deleted)"):
                name = fields[5].removeprefix(f"{SHM}/")
                if "/" not in name:
                    yield name, int(fields[4])
