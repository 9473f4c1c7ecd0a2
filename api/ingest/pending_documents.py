"""Documents that were accepted and are not in the catalog yet."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

__all__ = ["PendingDocuments"]

Name = tuple[str, str]
"""(collection, document id)"""


@dataclass
class _Pending:
    """Who holds a document's turn, and the newest upload of it; None where there is none, or it was withdrawn."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    upload: object | None = None
    num_users: int = 0


class PendingDocuments:
    """Which upload of each document is the newest: an older one, or one whose document was deleted since, is not to be
    committed, however late its job comes to it. Of one event loop."""

    def __init__(self) -> None:
        self._pending: dict[Name, _Pending] = {}

    def accept(self, collection: str, document_ids: Iterable[str], upload: object) -> None:
        """Note an upload as the newest of these documents."""
        for document_id in document_ids:
            self._pending.setdefault((collection, document_id), _Pending()).upload = upload

    def offer(self, collection: str, document_id: str, upload: object) -> bool:
        """Note an upload as the newest of a document, unless another one is still to be committed; whether it is."""
        pending = self._pending.get((collection, document_id))
        if pending is not None and pending.upload is not None:
            return False
        self.accept(collection, [document_id], upload)
        return True

    def withdraw(self, collection: str, document_id: str | None = None) -> bool:
        """Let no upload of a document, or of any of a collection, be committed any more; False where there is none."""
        found = False
        for name, pending in list(self._pending.items()):
            if name[0] == collection and document_id in (None, name[1]) and pending.upload is not None:
                pending.upload, found = None, True
                self._forget(name)
        return found

    def is_newest(self, collection: str, document_id: str, upload: object) -> bool:
        """Whether this upload of the document is still to be committed."""
        pending = self._pending.get((collection, document_id))
        return pending is not None and pending.upload is upload

    def end(self, collection: str, document_ids: Iterable[str], upload: object) -> None:
        """Forget what of an upload was committed, or never will be."""
        for document_id in document_ids:
            if self.is_newest(collection, document_id, upload):
                self._pending[collection, document_id].upload = None
            self._forget((collection, document_id))

    @asynccontextmanager
    async def turn(self, collection: str, document_id: str) -> AsyncIterator[None]:
        """Be the only one to put or delete this document while the block runs."""
        pending = self._pending.setdefault((collection, document_id), _Pending())
        pending.num_users += 1
        try:
            async with pending.lock:
                yield
        finally:
            pending.num_users -= 1
            self._forget((collection, document_id))

    def _forget(self, name: Name) -> None:
        pending = self._pending.get(name)
        if pending is not None and pending.upload is None and not pending.num_users:
            del self._pending[name]
