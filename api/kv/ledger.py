"""Passage KV that is to be deleted, kept until it is: a crash in between forgets nothing."""

from collections.abc import Collection
from pathlib import Path

from kvblend.api.kv.passage_kv import KVName
from kvblend.retriever import Database

__all__ = ["DeletionLedger"]

SCHEMA = """
    CREATE TABLE pending (
        encode_context TEXT NOT NULL, passage_id TEXT NOT NULL, PRIMARY KEY (encode_context, passage_id)
    )
"""


class DeletionLedger:
    """Names of passage KV in an SQLite file, synced before `add` returns. Call its methods in a thread."""

    def __init__(self, path: Path) -> None:
        self._database = Database(path, schema=SCHEMA, schema_version=1)

    def add(self, names: Collection[KVName]) -> None:
        """Note what may have to be deleted."""
        with self._database.write() as connection:
            connection.executemany("INSERT OR IGNORE INTO pending VALUES (?, ?)", list(names))

    def remove(self, names: Collection[KVName]) -> None:
        """Forget what is deleted, or need not be."""
        with self._database.write() as connection:
            connection.executemany("DELETE FROM pending WHERE encode_context = ? AND passage_id = ?", list(names))

    def pending(self) -> set[KVName]:
        with self._database.read() as connection:
            rows = connection.execute("SELECT encode_context, passage_id FROM pending").fetchall()
        return {(row["encode_context"], row["passage_id"]) for row in rows}

    def count(self) -> int:
        """How many names there are."""
        with self._database.read() as connection:
            (row,) = connection.execute("SELECT count(*) AS count FROM pending").fetchall()
        return int(row["count"])

    def close(self) -> None:
        self._database.close()
