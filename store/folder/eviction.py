"""Which files a tier gives up first."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from kvblend.store.folder.folder_scan import FoundFile

__all__ = ["EvictionPolicy", "LeastRecentlyUsed"]


class EvictionPolicy(Protocol):
    """Orders a tier's whole files, the first to go first."""

    def order(self, files: Iterable[FoundFile]) -> list[FoundFile]: ...


@dataclass(frozen=True)
class LeastRecentlyUsed:
    """The file that was put or opened longest ago goes first."""

    def order(self, files: Iterable[FoundFile]) -> list[FoundFile]:
        return sorted(files, key=lambda file: (file.used_ns, file.name))
