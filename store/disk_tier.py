"""The disk tier: files in any folder."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kvblend.store.buffers import byte_view, empty_extents
from kvblend.store.folder_tier import FolderTier
from kvblend.store.format import EXTENT_ALIGNMENT
from kvblend.store.tier_lock import LOCK_NAME

__all__ = ["DiskTier"]

log = logging.getLogger(__name__)

NUM_THREADS = 4


class DiskTier(FolderTier):
    """A folder on a disk: synced before a file counts as whole, read in threads.

    Reads go past the page cache (O_DIRECT) where the file system allows that: a passage that is read
    often is promoted to a faster tier, so a second copy in memory is a waste.
    """

    def __init__(self, root: Path, *, budget_bytes: int) -> None:
        super().__init__("disk", root, budget_bytes=budget_bytes, durable=True)
        if _takes_direct_reads(root):
            self._open_flags |= os.O_DIRECT
        self._num_threads = NUM_THREADS
        self._executor = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="kvblend-disk")


def _takes_direct_reads(root: Path) -> bool:
    """Whether an aligned O_DIRECT read works here. A read of nothing, past the lock file's end, is as good as any."""
    try:
        fd = os.open(root / LOCK_NAME, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
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
