"""The catalog: collections, documents, passages and their vectors, in one SQLite file; the truth behind the index."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvblend.core.errors import ConflictError
from kvblend.retriever.catalog_rows import (
    COLLECTION_COLUMNS,
    SETTINGS_COLUMNS,
    collection_record,
    collection_settings,
    collection_state,
    document_row,
    one_row,
)
from kvblend.retriever.database import Database
from kvblend.retriever.packing import PassageText
from kvblend.retriever.passage_table import (
    collections_holding,
    drop_unreferenced,
    found_passages,
    num_references,
    passages_of,
    put_passages,
)
from kvblend.retriever.records import (
    DOCUMENT_COLUMNS,
    CatalogChange,
    CollectionRecord,
    CollectionSettings,
    CollectionState,
    DocumentRecord,
    NewDocument,
    PassageRecord,
)
from kvblend.retriever.schema import SCHEMA, SCHEMA_VERSION

__all__ = ["Catalog"]


class Catalog:
    """Thread-safe. A passage is stored once in a collection and goes with its last reference.

    A collection or document that is not there raises NotFoundError.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the catalog's file."""
        self._database = Database(path, schema=SCHEMA, schema_version=SCHEMA_VERSION)

    def close(self) -> None:
        self._database.close()

    def create_collection(
        self, name: str, *, passage_tokens: int, settings: Mapping[str, Any] | None = None
    ) -> CollectionRecord:
        """Create a collection; `settings` is any JSON object.

        Raises:
            ConflictError: there is one of that name.
        """
        row = (name, passage_tokens, _to_json(settings or {}), time.time(), os.urandom(16))
        with self._database.write() as connection:
            if one_row(connection, "SELECT 1 FROM collections WHERE name = ?", name):
                raise ConflictError(f"there is already a collection {name!r}", param="name")
            connection.execute(
                "INSERT INTO collections (name, passage_tokens, settings, created_at, version) VALUES (?, ?, ?, ?, ?)",
                row,
            )
            return collection_record(connection, name)

    def update_collection(self, name: str, settings: Mapping[str, Any]) -> CollectionRecord:
        """Set some of a collection's settings, and keep the others. Raises NotFoundError."""
        with self._database.write() as connection:
            changed = _to_json({**collection_record(connection, name).settings, **settings})
            connection.execute("UPDATE collections SET settings = ? WHERE name = ?", (changed, name))
            return collection_record(connection, name)

    def collection_settings(self, name: str) -> CollectionSettings:
        with self._database.read() as connection:
            return collection_settings(connection, name)

    def list_settings(self) -> list[CollectionSettings]:
        """Of all collections, by name."""
        with self._database.read() as connection:
            rows = connection.execute(f"SELECT {SETTINGS_COLUMNS} FROM collections ORDER BY name").fetchall()
        return [CollectionSettings.from_row(row) for row in rows]

    def get_collection(self, name: str) -> CollectionRecord:
        with self._database.read() as connection:
            return collection_record(connection, name)

    def collection_state(self, name: str) -> CollectionState:
        with self._database.read() as connection:
            return collection_state(connection, name)

    def list_collections(self) -> list[CollectionRecord]:
        """All collections, by name."""
        with self._database.read() as connection:
            rows = connection.execute(f"SELECT {COLLECTION_COLUMNS} FROM collections ORDER BY name").fetchall()
        return [CollectionRecord.from_row(row) for row in rows]

    def delete_collection(self, name: str) -> list[str]:
        """Delete a collection with all that is in it; returns its passages' ids."""
        with self._database.write() as connection:
            key = collection_state(connection, name).key
            rows = connection.execute("SELECT passage_id FROM passages WHERE collection = ?", (key,)).fetchall()
            connection.execute("DELETE FROM collections WHERE key = ?", (key,))
        self._database.forget_deleted()
        return [row["passage_id"] for row in rows]

    def put_document(
        self,
        collection: str,
        document: NewDocument,
        passages: Sequence[PassageText],
        vectors: Mapping[str, NDArray[np.float32]],
    ) -> CatalogChange:
        """Put a document in place of the one with its id, in one transaction. Passages that are there are kept.

        Raises:
            MissingVectorsError: `vectors` (by passage id) lacks one that is not there; nothing was changed.
        """
        metadata = _to_json(document.metadata)
        num_tokens = sum(len(passage.token_ids) for passage in passages)
        with self._database.write() as connection:
            owner = collection_state(connection, collection)
            old = passages_of(connection, owner.key, document.id)
            rows, new = put_passages(connection, owner.key, passages, vectors)
            number = connection.execute(
                f"""INSERT INTO documents (collection, {DOCUMENT_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
                ON CONFLICT (collection, id) DO UPDATE SET name = excluded.name, media_type = excluded.media_type,
                content_hash = excluded.content_hash, metadata = excluded.metadata,
                num_passages = excluded.num_passages, num_tokens = excluded.num_tokens RETURNING row""",
                (owner.key, document.id, document.name, document.media_type, document.content_hash, metadata,
                 len(passages), num_tokens, time.time()),
            ).fetchone()["row"]  # fmt: skip
            connection.execute("DELETE FROM document_passages WHERE document = ?", (number,))
            connection.executemany(
                "INSERT INTO document_passages VALUES (?, ?, ?)",
                ((number, position, rows[passage.passage_id]) for position, passage in enumerate(passages)),
            )
            change = drop_unreferenced(connection, owner, [passage.row for passage in old], new)
        if change.dropped:
            self._database.forget_deleted()
        return change

    def get_document(self, collection: str, document_id: str) -> DocumentRecord:
        with self._database.read() as connection:
            key = collection_state(connection, collection).key
            return DocumentRecord.from_row(document_row(connection, key, document_id, columns=DOCUMENT_COLUMNS))

    def list_documents(self, collection: str, *, limit: int = 100, after: str | None = None) -> list[DocumentRecord]:
        """At most `limit` documents, by id, those behind the id `after`."""
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT {DOCUMENT_COLUMNS} FROM documents WHERE collection = ? AND id > ? ORDER BY id LIMIT ?",
                (collection_state(connection, collection).key, after or "", limit),
            ).fetchall()
        return [DocumentRecord.from_row(row) for row in rows]

    def delete_document(self, collection: str, document_id: str) -> CatalogChange:
        """Delete a document, and the passages that no other document of the collection has."""
        with self._database.write() as connection:
            owner = collection_state(connection, collection)
            number = document_row(connection, owner.key, document_id, columns="row")["row"]
            old = passages_of(connection, owner.key, document_id)
            connection.execute("DELETE FROM documents WHERE row = ?", (number,))
            change = drop_unreferenced(connection, owner, [passage.row for passage in old], {})
        self._database.forget_deleted()
        return change

    def document_passages(self, collection: str, document_id: str) -> list[PassageRecord]:
        """A document's passages in order."""
        with self._database.read() as connection:
            key = collection_state(connection, collection).key
            document_row(connection, key, document_id, columns="row")
            return passages_of(connection, key, document_id)

    def num_references(self, collection: str, passage_ids: Sequence[str]) -> dict[str, int]:
        """By how many documents of the collection each passage is held; a passage not there is left out."""
        with self._database.read() as connection:
            return num_references(connection, collection_state(connection, collection).key, passage_ids)

    def collections_holding(self, passage_ids: Sequence[str]) -> dict[str, list[str]]:
        """The names of the collections that hold each passage; a passage in none is left out."""
        with self._database.read() as connection:
            return collections_holding(connection, passage_ids)

    def found_passages(self, rows: Sequence[int]) -> dict[int, tuple[PassageRecord, DocumentRecord]]:
        """By row, passages each with the first of their documents; a row not there is left out."""
        with self._database.read() as connection:
            return found_passages(connection, rows)

    def passage_rows(self, collection_key: int) -> tuple[bytes | None, list[int]]:
        """A collection's version (None: it is gone) and the rows of its passages, both of one moment."""
        with self._database.read() as connection:
            version = one_row(connection, "SELECT version FROM collections WHERE key = ?", collection_key)
            rows = connection.execute("SELECT row FROM passages WHERE collection = ?", (collection_key,)).fetchall()
        return (version["version"] if version else None), [row["row"] for row in rows]

    def vectors(self, rows: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        """The vectors of passages by row; a row not there is left out."""
        with self._database.read() as connection:
            statement = "SELECT row, vector FROM passages WHERE row IN (SELECT value FROM json_each(?))"
            found = connection.execute(statement, (json.dumps(list(rows)),)).fetchall()
        return {row["row"]: np.frombuffer(row["vector"], dtype="<f4").astype(np.float32) for row in found}

    def get_value(self, name: str, *, collection: str | None = None) -> Any:
        """A stored JSON value, of a collection or of the whole catalog; None where there is none."""
        with self._database.read() as connection:
            key = collection_state(connection, collection).key if collection is not None else None
            row = one_row(connection, "SELECT value FROM stored_values WHERE collection IS ? AND name = ?", key, name)
        return None if row is None else json.loads(row["value"])

    def put_value(self, name: str, value: Any, *, collection: str | None = None) -> None:
        """Store a JSON value under a name, in place of the one before; it goes with its collection."""
        with self._database.write() as connection:
            key = collection_state(connection, collection).key if collection is not None else None
            connection.execute("DELETE FROM stored_values WHERE collection IS ? AND name = ?", (key, name))
            connection.execute("INSERT INTO stored_values VALUES (?, ?, ?)", (key, name, _to_json(value)))

    def check_integrity(self) -> None:
        """Assert that the file is sound, references hold, and no passage is without a document."""
        with self._database.read() as connection:
            assert [row[0] for row in connection.execute("PRAGMA integrity_check")] == ["ok"]
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
            orphans = "SELECT 1 FROM passages WHERE row NOT IN (SELECT passage FROM document_passages)"
            assert connection.execute(orphans).fetchall() == []
            counts = """SELECT 1 FROM documents d WHERE num_passages !=
                (SELECT count(*) FROM document_passages WHERE document = d.row)"""
            assert connection.execute(counts).fetchall() == []


def _to_json(value: Any) -> str:
    # As it is: what UTF-8 cannot hold fails here, and not whoever reads it.
    return json.dumps(value, allow_nan=False, sort_keys=True, ensure_ascii=False)
