"""Which variants may be stored, kept so that they go with either passage, whatever became of the counts meanwhile."""

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from kvblend.api.prompt.neighbours.pair_counts import PassageVariant
from kvblend.retriever import Database

__all__ = ["StoredVariant", "VariantLedger"]

SCHEMA = """
    CREATE TABLE variants (
        collection TEXT NOT NULL, before TEXT NOT NULL, passage TEXT NOT NULL, context TEXT NOT NULL,
        PRIMARY KEY (collection, before, passage, context)
    ) WITHOUT ROWID;
    CREATE INDEX variants_by_passage ON variants (passage);
    CREATE INDEX variants_by_before ON variants (before)
"""
COLUMNS = "collection, before, passage, context"


class StoredVariant(NamedTuple):
    """A variant of a collection's passage; with the encode context it makes a name of passage KV."""

    collection: str
    variant: PassageVariant
    context: str

    @property
    def name(self) -> tuple[str, str]:
        return self.context, self.variant.passage


class VariantLedger:
    """Variants in an SQLite file: written before each is encoded, so that it holds all that are stored, and some that
    are not any more. Thread-safe; call its methods in a thread."""

    def __init__(self, path: Path) -> None:
        self._database = Database(path, schema=SCHEMA, schema_version=1)

    def add(self, variants: Iterable[StoredVariant]) -> None:
        """Note variants that are about to be encoded."""
        rows = [(each.collection, *each.variant, each.context) for each in variants]
        with self._database.write() as connection:
            connection.executemany(f"INSERT OR IGNORE INTO variants ({COLUMNS}) VALUES (?, ?, ?, ?)", rows)

    def remove(self, names: Collection[tuple[str, str]]) -> None:
        """Forget those whose KV, by (encode context, passage id), is deleted."""
        with self._database.write() as connection:
            connection.executemany("DELETE FROM variants WHERE context = ? AND passage = ?", list(names))

    def of(self, names: Collection[tuple[str, str]]) -> list[StoredVariant]:
        """Those that names of passage KV are of."""
        wanted = set(names)
        found = self._select("passage IN (SELECT value FROM json_each(?))", {passage for _, passage in wanted})
        return [each for each in found if each.name in wanted]

    def touching(self, passage_ids: Collection[str]) -> list[StoredVariant]:
        """Those of passages, and behind them."""
        where = "passage IN (SELECT value FROM json_each(?1)) OR before IN (SELECT value FROM json_each(?1))"
        return self._select(where, passage_ids)

    def of_collection(self, collection: str) -> list[StoredVariant]:
        """All of a collection."""
        return self._select("collection IN (SELECT value FROM json_each(?))", [collection])

    def close(self) -> None:
        self._database.close()

    def _select(self, where: str, values: Collection[str]) -> list[StoredVariant]:
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT {COLUMNS} FROM variants WHERE {where}", (json.dumps(list(values)),)
            ).fetchall()
        return [
            StoredVariant(row["collection"], PassageVariant(row["before"], row["passage"]), row["context"])
            for row in rows
        ]
