"""The disk tier: files in any folder."""

from pathlib import Path

from kvblend.store.eviction import EvictionPolicy
from kvblend.store.folder.folder_tier import FolderTier

__all__ = ["DiskTier"]

NUM_THREADS = 4


class DiskTier(FolderTier):
    """A folder on a disk: synced before a file counts as whole, read in threads.

    Reads go past the page cache (O_DIRECT) where the file system allows that: a passage that is read
    often is promoted to a faster tier, so a second copy in memory is a waste.
    """

    def __init__(self, root: Path, *, budget_bytes: int, policy: EvictionPolicy | None = None) -> None:
        super().__init__(
            "disk", root, budget_bytes=budget_bytes, policy=policy, durable=True, direct=True, num_threads=NUM_THREADS
        )
