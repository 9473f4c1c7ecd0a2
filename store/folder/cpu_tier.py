"""The CPU tier: files on tmpfs."""

from pathlib import Path

from kvblend.store.eviction import EvictionPolicy
from kvblend.store.folder.folder_tier import FolderTier

__all__ = ["CPUTier"]


class CPUTier(FolderTier):
    """A folder on a file system in memory.

    It outlives the process but not the machine, so nothing is synced. Files are read and written by system
    calls, not through a mapping: under a mapping, a truncated file or a full tmpfs is a fatal signal.
    """

    def __init__(self, root: Path, *, budget_bytes: int, policy: EvictionPolicy | None = None) -> None:
        super().__init__("cpu", root, budget_bytes=budget_bytes, policy=policy, durable=False)
