"""How a folder tier makes room: what goes, and where it goes to."""

import logging
from collections.abc import Sequence

from kvblend.core.errors import CorruptPassageKVError, StoreFullError
from kvblend.store.content import CopiedContent
from kvblend.store.deadline import NEVER
from kvblend.store.folder.folder_reader import FolderReader
from kvblend.store.folder.folder_space import FolderSpace
from kvblend.store.folder.index import FolderIndex, IndexedFile
from kvblend.store.key import PassageKVKey
from kvblend.store.tier import BoundedTier

__all__ = ["FolderEviction"]

log = logging.getLogger(__name__)


class FolderEviction:
    """Moves files to the next slower tier, where they do not lie there, or drops them."""

    def __init__(self, name: str, space: FolderSpace, reader: FolderReader) -> None:
        self._name, self._space, self._reader = name, space, reader
        self.slower: BoundedTier | None = None

    def victims(self, index: FolderIndex, num_bytes: int) -> list[IndexedFile]:
        """What must go before `num_bytes` more fit; it is `leaving` from now on. Raises StoreFullError."""
        budget_bytes = self._space.budget_bytes
        over = index.totals().used_bytes + num_bytes - budget_bytes
        if over > 0 and self._space.remove_abandoned(index):
            over = index.totals().used_bytes + num_bytes - budget_bytes
        return index.choose(over) if over > 0 else []

    def evict(self, victims: Sequence[IndexedFile]) -> int:
        """Move chosen files down, or drop them; returns bytes freed here. Outside of a transaction."""
        for file in victims:
            key = PassageKVKey.from_file_name(file.name)
            if self.slower is not None and key is not None and not self.slower.lookup_many([key], NEVER):
                self.copy_down(key)
        with self._space.change() as index:
            return sum(file.num_bytes for file in victims if self._leave(index, file))

    def copy_down(self, key: PassageKVKey) -> bool:
        """Make sure that the slower tier has the file; False where it cannot, or it is not here, or there is none."""
        if self.slower is None:
            return False
        try:
            file = self._reader.open(self._space.root / key.file_name, key)
            if file is None:
                return False
            with file:
                self.slower.put(CopiedContent(file), NEVER)
        except (CorruptPassageKVError, StoreFullError, OSError) as error:
            log.warning("passage KV %s is not moved down from the %s tier: %s", key.file_name, self._name, error)
            return False
        return True

    def _leave(self, index: FolderIndex, file: IndexedFile) -> bool:
        """Remove a chosen file, unless it was pinned meanwhile."""
        row = index.get(file.name)
        if row is not None and row.pinned:
            index.change(file.name, kind="whole")
            return False
        return self._space.remove(index, file.name, evicted=file.kind != "quarantined")
