"""The folder by which the processes of one host find their peer process.

<folder>/.peers.lock    held by the peer process as long as it lives; its process id
<folder>/.peers.sock    where it listens to the host's processes
"""

import fcntl
import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kvblend.core.settings import Settings

__all__ = ["host_folder", "host_names", "process_id", "try_lock", "unix_socket"]

LOCK_NAME, SOCKET_NAME = ".peers.lock", ".peers.sock"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def host_folder(settings: Settings) -> Path:
    """The CPU tier's folder, which is no other host's; the disk tier's where there is none. It is made."""
    folder = settings.cpu_path.expanduser() if settings.cpu_bytes else settings.disk_tier_path
    folder.mkdir(parents=True, exist_ok=True, mode=0o770)
    return folder


def host_names(settings: Settings) -> list[str]:
    """What no other host's folders are called: hosts that have one in common are the same."""
    folders = [settings.cpu_path.expanduser()] if settings.cpu_bytes else []
    folders += [settings.disk_tier_path] if settings.disk_bytes else []
    names = []
    for folder in folders:
        with suppress(FileNotFoundError):
            status = folder.stat()
            name = f"{BOOT_ID.read_text()} {status.st_dev} {status.st_ino}"
            names.append(hashlib.sha256(name.encode()).hexdigest())
    return names


def try_lock(folder: Path) -> int | None:
    """Take the right to be the host's peer process: an open file, whose lock whoever inherits it holds; None where
    there is one."""
    fd = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o660)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def process_id(folder: Path) -> int | None:
    """Of the folder's peer process, if one was ever there."""
    with suppress(FileNotFoundError, ValueError):
        return int((folder / LOCK_NAME).read_text())
    return None


@contextmanager
def unix_socket(folder: Path) -> Iterator[tuple[socket.socket, str]]:
    """A new socket, and what to bind or connect it to: short enough however long the folder's name is."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    own = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        yield own, f"/proc/self/fd/{fd}/{SOCKET_NAME}"
    except BaseException:
        own.close()
        raise
    finally:
        os.close(fd)
