"""Which folder of which machine a path is: containers see one folder by different paths, and others by the same."""

from pathlib import Path

__all__ = ["place_of"]

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""The same in all containers of a host, and of no other host."""


def place_of(folder: Path) -> str:
    """A name for a folder that two paths have in common where they lead to it. Raises OSError where it is not there."""
    status = folder.stat()
    machine = BOOT_ID.read_text().strip() if BOOT_ID.exists() else "this"
    return f"{machine}:{status.st_dev}:{status.st_ino}"
