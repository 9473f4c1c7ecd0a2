"""The counts of all collections, in an SQLite file that is written now and then: a restart loses a minute's."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from threading import Lock
from typing import TypeVar

from kvblend.api.prompt.neighbours.pair_counts import PairCounts, PassageVariant
from kvblend.retriever import Database

__all__ = ["PairLedger"]

MAX_COLLECTIONS = 64
"""In memory at a time; the others are read again when they are used."""
SCHEMA = """
    CREATE TABLE counts (
        collection TEXT NOT NULL, before TEXT NOT NULL, passage TEXT NOT NULL, count REAL NOT NULL,
        PRIMARY KEY (collection, before, passage)
    ) WITHOUT ROWID
"""

Result = TypeVar("Result")


class PairLedger:
    """Thread-safe. Its methods read files: call them in a thread."""

    def __init__(self, path: Path, *, make_counts: Callable[[], PairCounts] = PairCounts) -> None:
        self._database = Database(path, schema=SCHEMA, schema_version=1)
        self._make_counts = make_counts
        self._counts: OrderedDict[str, PairCounts] = OrderedDict()  # the least recently used first
        self._changed: set[str] = set()
        self._has_news = False
        self._lock = Lock()

    def note(
        self,
        collection: str,
        served: Sequence[str],
        retrieved: Sequence[str] = (),
        *,
        known: Collection[tuple[str, str]] = (),
    ) -> None:
        """Count a request, as `PairCounts.note`."""
        with self._lock:
            self._of(collection).note(served, retrieved, known=known)
            self._changed.add(collection)
            self._has_news = True

    def take_news(self) -> bool:
        """Whether a request was counted since the last call."""
        has_news, self._has_news = self._has_news, False
        return has_news

    def look(self, collection: str, look: Callable[[PairCounts], Result]) -> Result:
        """Ask a collection's counts something."""
        with self._lock:
            return look(self._of(collection))

    def forget(self, collection: str, passage_ids: Collection[str] | None = None) -> None:
        """Drop passages that were deleted, or with None the whole collection; from the file, too, before it returns."""
        with self._lock:
            if passage_ids is None:
                self._counts[collection] = self._make_counts()
            elif not self._of(collection).forget(passage_ids):
                return
            self._write([collection])
            if passage_ids is None:
                del self._counts[collection]
        self._database.forget_deleted()

    def save(self) -> None:
        """Write what has changed since it was last written."""
        with self._lock:
            self._write(list(self._changed))

    def close(self) -> None:
        self.save()
        self._database.close()

    def _of(self, collection: str) -> PairCounts:
        if collection not in self._counts:
            with self._database.read() as connection:
                rows = connection.execute(
                    "SELECT before, passage, count FROM counts WHERE collection = ?", (collection,)
                ).fetchall()
            counts = self._counts[collection] = self._make_counts()
            counts.restore((PassageVariant(row["before"], row["passage"]), row["count"]) for row in rows)
            if len(self._counts) > MAX_COLLECTIONS:
                oldest = next(iter(self._counts))
                self._write([oldest] if oldest in self._changed else [])
                del self._counts[oldest]
        self._counts.move_to_end(collection)
        return self._counts[collection]

    def _write(self, collections: Sequence[str]) -> None:
        if not collections:
            return
        with self._database.write() as connection:
            for collection in collections:
                connection.execute("DELETE FROM counts WHERE collection = ?", (collection,))
                connection.executemany(
                    "INSERT INTO counts VALUES (?, ?, ?, ?)",
                    (
                        (collection, variant.before, variant.passage, count)
                        for variant, count in self._counts[collection].counts()
                    ),
                )
        self._changed.difference_update(collections)
