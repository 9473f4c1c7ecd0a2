"""Opening a folder tier's files, and putting the corrupt ones aside."""

import io
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kvblend.core.errors import CorruptPassageKVError
from kvblend.store.buffers import byte_view, empty_extents
from kvblend.store.folder.folder_space import READ_FLAGS, FolderSpace
from kvblend.store.folder.passage_file import PassageKVFile, read_header
from kvblend.store.folder.users import USERS_NAME, is_same_file
from kvblend.store.format import EXTENT_ALIGNMENT
from kvblend.store.key import PassageKVKey

__all__ = ["FolderReader"]

log = logging.getLogger(__name__)


class FolderReader:
    """Opens files of one folder tier: with O_DIRECT where `direct` asks and the file system allows it.

    It marks nothing as used.
    """

    def __init__(self, tier: str, space: FolderSpace, *, direct: bool, num_threads: int) -> None:
        self._tier = tier
        self._space = space
        self._direct = direct and _takes_direct_reads(space.root)
        self._num_threads = num_threads
        self._executor: ThreadPoolExecutor | None = None
        if num_threads > 1:
            self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix=f"kvblend-{tier}")

    def open(self, path: Path, key: PassageKVKey) -> PassageKVFile | None:
        """Open `key`'s file; None where there is none.

        Raises CorruptPassageKVError where the file is not that, after it was quarantined.
        """
        fd = self._open(path)
        if fd is None:
            return None
        try:
            return self._wrap(fd, path, key)
        except CorruptPassageKVError as error:
            self.quarantine(path, fd, error.message)
            os.close(fd)
            raise

    def quarantine(self, path: Path, fd: int, reason: str) -> bool:
        """Put the open file aside if `path` still names it."""
        try:
            with self._space.change() as index:
                if not is_same_file(fd, path):
                    return False
                target = self._space.set_aside(index, path)
        except OSError as error:  # a read-only file system: a reader must go on all the same
            log.warning("passage KV %s: %s; it cannot be moved: %s", path, reason, error)
            return False
        log.warning("passage KV %s: %s; moved to %s", path, reason, target)
        return True

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown()

    def _open(self, path: Path) -> int | None:
        try:
            return os.open(path, READ_FLAGS | (os.O_DIRECT if self._direct else 0))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:  # not ours to read, a symbolic link, or no descriptor left: the request recomputes
            log.warning("passage KV %s cannot be opened: %s", path, error)
            return None

    def _wrap(self, fd: int, path: Path, key: PassageKVKey) -> PassageKVFile:
        """Check the header; the file returned owns `fd`. Raises CorruptPassageKVError, and then it does not."""
        header = read_header(fd, max_bytes=self._space.budget_bytes)
        if header.key != key:
            raise CorruptPassageKVError(f"holds the KV of {header.key.file_name}")
        return PassageKVFile(
            io.FileIO(fd, "rb"),
            header,
            tier=self._tier,
            path=path,
            put_aside=self.quarantine,
            direct=self._direct,
            executor=self._executor,
            num_threads=self._num_threads,
        )


def _takes_direct_reads(root: Path) -> bool:
    """Whether an aligned O_DIRECT read works here. One of a file shorter than an extent, is as good as any."""
    try:
        fd = os.open(root / USERS_NAME, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        log.debug("no O_DIRECT at %s: %s", root, error)
        return False
    try:
        os.preadv(fd, [byte_view(empty_extents(1, EXTENT_ALIGNMENT))], 0)
    except OSError as error:
        log.debug("no O_DIRECT reads at %s: %s", root, error)
        return False
    finally:
        os.close(fd)
    return True
