"""How a file comes into a folder tier: whole, or not at all."""

import errno
import os
from pathlib import Path

from kvblend.core.errors import StoreFullError
from kvblend.store.content import PassageKVContent
from kvblend.store.folder.folder_eviction import FolderEviction
from kvblend.store.folder.folder_space import FolderSpace, Temporary, is_whole

__all__ = ["FolderWriter"]

OUT_OF_SPACE = {errno.ENOSPC, errno.EDQUOT}


class FolderWriter:
    """Writes files beside their place, and renames them to it once they are whole."""

    def __init__(self, name: str, space: FolderSpace, eviction: FolderEviction) -> None:
        self._name, self._space, self._eviction = name, space, eviction

    def put(self, content: PassageKVContent) -> bool:
        """Write a file where none lies; False, and its use is counted, where one does. Raises as `Tier.put`."""
        return self._write(content, replacing=False)

    def replace(self, content: PassageKVContent) -> bool:
        """Write a file in place of the one that lies there; False where none does, any more. Raises as `Tier.put`."""
        return self._write(content, replacing=True)

    def _write(self, content: PassageKVContent, *, replacing: bool) -> bool:
        path, temporary = self._path(content), self._begin(content, replacing=replacing)
        if temporary is None:
            return False
        try:
            content.write(temporary.fd)
            if self._space.durable:
                os.fsync(temporary.fd)
            committed = self._commit(temporary, path, content, replacing=replacing)
        except BaseException as error:
            with self._space.change() as index:
                self._space.remove(index, temporary.name)
            if isinstance(error, OSError) and error.errno in OUT_OF_SPACE:
                raise self._no_space(content) from error
            raise
        finally:
            os.close(temporary.fd)
        self._space.sync_folder(path.parent)
        return committed

    def _begin(self, content: PassageKVContent, *, replacing: bool) -> Temporary | None:
        """Make room, and a file to write; None where nothing is to be written."""
        path, num_bytes = self._path(content), content.num_bytes
        if num_bytes > self._space.budget_bytes:
            raise StoreFullError(
                f"{num_bytes} bytes of one passage KV are over the {self._name} tier's {self._space.budget_bytes}"
            )
        has_space = self._space.has_space(num_bytes)
        while True:
            with self._space.change() as index:
                if is_whole(path) != replacing:
                    break
                if not has_space:
                    raise self._no_space(content)
                victims = self._eviction.victims(index, num_bytes)
                if not victims:
                    return self._space.create(index, path, content.header, num_bytes)
            self._eviction.evict(victims)
        if not replacing:
            self._space.used([content.key.file_name])
        return None

    def _commit(self, temporary: Temporary, path: Path, content: PassageKVContent, *, replacing: bool) -> bool:
        with self._space.change() as index:
            if is_whole(path) != replacing:
                self._space.remove(index, temporary.name)
                return False
            self._space.commit(index, temporary, path, content.header, replaces=replacing)
            return True

    def _no_space(self, content: PassageKVContent) -> StoreFullError:
        return StoreFullError(
            f"the file system at {self._space.root} has no room for {content.num_bytes} bytes, though the "
            f"{self._name} tier's budget of {self._space.budget_bytes} has"
        )

    def _path(self, content: PassageKVContent) -> Path:
        return self._space.root / content.key.file_name
