"""The catalog: collections, documents, passages and their vectors, in one SQLite file; the truth behind the index."""

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zstandard import compress

from kvblend.core.collection_name import name_in_tenant
from kvblend.core.errors import ConflictError
from kvblend.retriever.catalog_integrity import check_integrity
from kvblend.retriever.catalog_reading import CatalogReading, CollectionReading
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
from kvblend.retriever.document_table import document_source, has_document, is_whole, put_document_rows
from kvblend.retriever.packing import PassageText
from kvblend.retriever.passage_table import (
    document_places,
    drop_unreferenced,
    embedded_passages,
    num_references,
    passage_lengths,
    passage_tokens,
    passage_vectors,
    passages_of,
    places_of,
    put_passages,
    tokens_behind,
)
from kvblend.retriever.records import (
    DOCUMENT_COLUMNS,
    CatalogChange,
    CollectionRecord,
    CollectionSettings,
    CollectionState,
    DocumentRecord,
    FoundPassage,
    NewDocument,
    PassageRecord,
    PassageTokens,
    Place,
)
from kvblend.retriever.schema import MIGRATIONS, SCHEMA, SCHEMA_VERSION
from kvblend.retriever.stored_values import put_value, stored_value, to_json
from kvblend.retriever.word_table import WordsState, create_words, drop_words
from kvblend.retriever.word_upkeep import forget_words, index_missing_words

__all__ = ["Catalog"]


class Catalog:
    """Thread-safe. A passage is stored once in a collection and goes with its last reference.

    A collection or document that is not there raises NotFoundError.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the catalog's file."""
        self._database = Database(path, schema=SCHEMA, schema_version=SCHEMA_VERSION, migrations=MIGRATIONS)
        index_missing_words(self._database)
        forget_words(self._database)

    def close(self) -> None:
        self._database.close()

    def create_collection(
        self, name: str, *, passage_tokens: int, settings: Mapping[str, Any] | None = None
    ) -> CollectionRecord:
        """Create a collection; `settings` is any JSON object.

        Raises:
            ConflictError: there is one of that name.
        """
        row = (name, passage_tokens, to_json(settings or {}), time.time(), os.urandom(16), WordsState.WHOLE)
        with self._database.write() as connection:
            if one_row(connection, "SELECT 1 FROM collections WHERE name = ?", name):
                raise ConflictError(f"there is already a collection {name_in_tenant(name)!r}", param="name")
            key = connection.execute(
                """INSERT INTO collections (name, passage_tokens, settings, created_at, version, words)
                VALUES (?, ?, ?, ?, ?, ?) RETURNING key""",
                row,
            ).fetchone()["key"]
            create_words(connection, key)
            return collection_record(connection, name)

    def update_collection(
        self, name: str, settings: Mapping[str, Any], *, passage_tokens: int | None = None
    ) -> CollectionRecord:
        """Set some of a collection's settings, and keep the others. `passage_tokens`: of documents that are split from
        now on. Raises NotFoundError."""
        with self._database.write() as connection:
            changed = to_json({**collection_record(connection, name).settings, **settings})
            connection.execute(
                """UPDATE collections SET settings = ?, passage_tokens = ifnull(?, passage_tokens)
                WHERE name = ?""",
                (changed, passage_tokens, name),
            )
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
            drop_words(connection, key)
        self._database.forget_deleted()
        return [row["passage_id"] for row in rows]

    def put_document(
        self,
        collection: str,
        document: NewDocument,
        passages: Sequence[PassageText],
        vectors: Mapping[str, NDArray[np.float32]],
        contexts: Sequence[str] = (),
        *,
        source: bytes = b"",
        prepare: Callable[[CatalogChange], None] | None = None,
    ) -> CatalogChange:
        """Put a document in place of the one with its id, in one transaction. Passages that are there are kept.

        `contexts`: of each passage, the caller's own name for what precedes it in the document; none: all are "".
        `source`: the document's own bytes, kept so that it can be split anew.
        `prepare` is told of the change within the transaction, before anyone can see it.

        Raises:
            MissingVectorsError: `vectors` (by passage id) lacks one that is not there; nothing was changed.
        """
        packed = compress(source)
        with self._database.write() as connection:
            owner = collection_state(connection, collection)
            old = passages_of(connection, owner.key, document.id)
            is_new = not has_document(connection, owner.key, document.id)
            rows, new, embedded = put_passages(connection, owner.key, passages, vectors)
            put_document_rows(connection, owner.key, document, passages, rows, contexts, packed=packed)
            change = drop_unreferenced(
                connection,
                owner,
                [passage.row for passage in old],
                new,
                num_documents=int(is_new),
                embedded=embedded,
            )
            if prepare is not None:
                prepare(change)
        if change.dropped:
            self._forget()
        return change

    def get_document(self, collection: str, document_id: str) -> DocumentRecord:
        with self._database.read() as connection:
            key = collection_state(connection, collection).key
            return DocumentRecord.from_row(document_row(connection, key, document_id, columns=DOCUMENT_COLUMNS))

    def document_source(self, collection: str, document_id: str) -> bytes | None:
        """A document's own bytes; None where an earlier version, which kept none, put it."""
        with self._database.read() as connection:
            return document_source(connection, self._document_row(connection, collection, document_id))

    def is_whole(self, collection: str, document_id: str) -> bool:
        """Whether a document has its source, and all its passages have a vector."""
        with self._database.read() as connection:
            return is_whole(connection, self._document_row(connection, collection, document_id))

    def embedded(self, collection: str, passage_ids: Collection[str]) -> set[str]:
        """Those of these passages that the collection holds with a vector."""
        with self._database.read() as connection:
            return embedded_passages(connection, collection_state(connection, collection).key, passage_ids)

    def forget_vectors(self, collection: str, *, values: Mapping[str, Any]) -> int:
        """Take all vectors out of a collection, and store values of it, in one transaction; returns its key."""
        with self._database.write() as connection:
            key = collection_state(connection, collection).key
            connection.execute("UPDATE passages SET vector = x'' WHERE collection = ?", (key,))
            connection.execute("UPDATE collections SET version = ? WHERE key = ?", (os.urandom(16), key))
            for name, value in values.items():
                put_value(connection, key, name, value)
        self._database.forget_deleted()
        return key

    def _document_row(self, connection: Connection, collection: str, document_id: str) -> int:
        key = collection_state(connection, collection).key
        return int(document_row(connection, key, document_id, columns="row")["row"])

    def list_documents(self, collection: str, *, limit: int = 100, after: str | None = None) -> list[DocumentRecord]:
        """At most `limit` documents, by id, those behind the id `after`."""
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT {DOCUMENT_COLUMNS} FROM documents WHERE collection = ? AND id > ? ORDER BY id LIMIT ?",
                (collection_state(connection, collection).key, after or "", limit),
            ).fetchall()
        return [DocumentRecord.from_row(row) for row in rows]

    def delete_document(
        self, collection: str, document_id: str, *, prepare: Callable[[CatalogChange], None] | None = None
    ) -> CatalogChange:
        """Delete a document, and the passages that no other document of the collection has.

        `prepare`: as of `put_document`.
        """
        with self._database.write() as connection:
            owner = collection_state(connection, collection)
            number = document_row(connection, owner.key, document_id, columns="row")["row"]
            old = passages_of(connection, owner.key, document_id)
            connection.execute("DELETE FROM documents WHERE row = ?", (number,))
            change = drop_unreferenced(connection, owner, [passage.row for passage in old], {}, num_documents=-1)
            if prepare is not None:
                prepare(change)
        self._forget()
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

    def passage_lengths(self, collection: str, passage_ids: Collection[str]) -> dict[str, int]:
        """Tokens of those of these passages that the collection holds."""
        with self._database.read() as connection:
            return passage_lengths(connection, collection_state(connection, collection).key, passage_ids)

    def passage_tokens(self, collection: str, passage_ids: Collection[str]) -> dict[str, tuple[int, ...]]:
        """Token ids of those of these passages that the collection holds."""
        with self._database.read() as connection:
            return passage_tokens(connection, collection_state(connection, collection).key, passage_ids)

    def document_places(self, collection: str, document_id: str) -> list[Place]:
        """Where a document's passages stand, in order."""
        with self._database.read() as connection:
            key = collection_state(connection, collection).key
            document_row(connection, key, document_id, columns="row")
            return document_places(connection, collection, key, document_id)

    def places_of(self, names: Collection[tuple[str, str]]) -> set[Place]:
        """Which of these contexts and passage ids, paired, stand in some document, in all collections."""
        with self._database.read() as connection:
            return places_of(connection, names)

    def find_passages(self, passage_ids: Collection[str]) -> dict[str, dict[str, FoundPassage]]:
        """Of every collection that holds some of these passages, those, by passage id; oldest collection first."""
        with self.reading_all() as reading:
            held = reading.rows_by_collection(passage_ids)
            found = reading.found_passages([row for rows in held.values() for row in rows.values()])
        return {
            name: {passage_id: found[row] for passage_id, row in rows.items() if row in found}
            for name, rows in held.items()
        }

    @contextmanager
    def reading(self, collection: str) -> Iterator[CollectionReading]:
        """A collection as of one moment, whatever is written meanwhile."""
        with self._database.read() as connection:
            yield CollectionReading(collection_state(connection, collection), connection)

    @contextmanager
    def reading_all(self) -> Iterator[CatalogReading]:
        """All collections as of one moment, whatever is written meanwhile."""
        with self._database.read() as connection:
            yield CatalogReading(connection)

    def tokens_behind(self, row: int, *, limit: int) -> list[PassageTokens]:
        """The next passages behind a row, at most `limit`, of all collections. A passage that comes later has a greater
        row than every one before it."""
        with self._database.read() as connection:
            return tokens_behind(connection, row, limit=limit)

    def num_passages(self) -> int:
        """Of all collections; one that several hold counts for each."""
        with self._database.read() as connection:
            return int(connection.execute("SELECT ifnull(sum(num_passages), 0) FROM collections").fetchone()[0])

    def passage_rows(self, collection_key: int) -> tuple[bytes | None, list[int]]:
        """A collection's version (None: it is gone) and the rows of its passages that have a vector, both of one
        moment."""
        with self._database.read() as connection:
            version = one_row(connection, "SELECT version FROM collections WHERE key = ?", collection_key)
            embedded = "SELECT row FROM passages WHERE collection = ? AND length(vector) > 0"
            rows = connection.execute(embedded, (collection_key,)).fetchall()
        return (version["version"] if version else None), [row["row"] for row in rows]

    def vectors(self, rows: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        """The vectors of passages by row; a row not there is left out."""
        with self._database.read() as connection:
            return passage_vectors(connection, rows)

    def get_value(self, name: str, *, collection: str | None = None) -> Any:
        """A stored JSON value, of a collection or of the whole catalog; None where there is none."""
        with self._database.read() as connection:
            key = collection_state(connection, collection).key if collection is not None else None
            return stored_value(connection, key, name)

    def put_value(self, name: str, value: Any, *, collection: str | None = None) -> None:
        """Store a JSON value under a name, in place of the one before; it goes with its collection."""
        with self._database.write() as connection:
            key = collection_state(connection, collection).key if collection is not None else None
            put_value(connection, key, name, value)

    def check_integrity(self) -> None:
        """Assert that the file is sound, references hold, and no passage is without a document."""
        with self._database.read() as connection:
            check_integrity(connection)

    def _forget(self) -> None:
        """Let what was deleted leave the disk."""
        forget_words(self._database)
        self._database.forget_deleted()
