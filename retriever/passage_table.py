"""Rows of the catalog's passages table, within a transaction that the catalog holds."""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from sqlite3 import Connection

import numpy as np
from numpy.typing import NDArray

from kvblend.retriever.packing import PassageText
from kvblend.retriever.records import (
    CatalogChange,
    CollectionState,
    PassageRecord,
    PassageTokens,
    Place,
)
from kvblend.retriever.word_table import add_words, drop_words_of

__all__ = [
    "MissingVectorsError",
    "document_places",
    "drop_unreferenced",
    "embedded_passages",
    "num_references",
    "passage_lengths",
    "passage_tokens",
    "passage_vectors",
    "passages_of",
    "places_of",
    "put_passages",
    "rows_by_collection",
    "token_arrays",
    "tokens_behind",
]


class MissingVectorsError(LookupError):
    """A document names passages that the catalog lacks and that came without a vector."""


def passages_of(connection: Connection, collection_key: int, document_id: str) -> list[PassageRecord]:
    """A document's passages in order; none where there is no such document."""
    rows = connection.execute(
        """SELECT p.row, p.passage_id, p.text, p.token_ids FROM documents d
        JOIN document_passages ON document = d.row JOIN passages p ON p.row = passage
        WHERE d.collection = ? AND d.id = ? ORDER BY position""",
        (collection_key, document_id),
    ).fetchall()
    return [PassageRecord.from_row(row) for row in rows]


def put_passages(
    connection: Connection,
    collection_key: int,
    passages: Sequence[PassageText],
    vectors: Mapping[str, NDArray[np.float32]],
) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Insert the passages that the collection lacks; returns the rows of all by passage id, those of the new, and those
    of passages that were there without a vector.

    Raises:
        MissingVectorsError: a passage that it lacks has no vector.
    """
    by_id = {passage.passage_id: passage for passage in passages}
    known = connection.execute(
        """SELECT passage_id, row, length(vector) AS vector_bytes FROM passages
        WHERE collection = ? AND passage_id IN (SELECT value FROM json_each(?))""",
        (collection_key, json.dumps(list(by_id))),
    ).fetchall()
    rows: dict[str, int] = {row["passage_id"]: row["row"] for row in known}
    missing = [passage_id for passage_id in by_id if passage_id not in rows]
    embedded = {row["passage_id"]: row["row"] for row in known if not row["vector_bytes"]}
    if any(passage_id not in vectors for passage_id in [*missing, *embedded]):
        raise MissingVectorsError(f"{len(missing)} passages need vectors")
    new: dict[str, int] = {}
    for passage_id in missing:
        passage = by_id[passage_id]
        cursor = connection.execute(
            "INSERT INTO passages (collection, passage_id, text, token_ids, vector) VALUES (?, ?, ?, ?, ?)",
            (
                collection_key,
                passage_id,
                passage.text,
                np.asarray(passage.token_ids, dtype="<i4").tobytes(),
                _vector_bytes(vectors[passage_id]),
            ),
        )
        assert cursor.lastrowid is not None
        new[passage_id] = cursor.lastrowid
    connection.executemany(
        "UPDATE passages SET vector = ? WHERE row = ?",
        [(_vector_bytes(vectors[passage_id]), row) for passage_id, row in embedded.items()],
    )
    add_words(connection, collection_key, new.values())
    return rows | new, new, embedded


def _vector_bytes(vector: NDArray[np.float32]) -> bytes:
    return np.ascontiguousarray(vector, dtype="<f4").tobytes()


def drop_unreferenced(
    connection: Connection,
    owner: CollectionState,
    candidates: Sequence[int],
    new: dict[str, int],
    *,
    num_documents: int,
    embedded: Mapping[str, int] | None = None,
) -> CatalogChange:
    """Delete those of the candidate rows that no document holds any more; `new` ones were put before.

    The collection's kept counts follow: so many documents more, and its passages.
    """
    deleted = connection.execute(
        """DELETE FROM passages WHERE row IN (SELECT value FROM json_each(?))
        AND NOT EXISTS (SELECT 1 FROM document_passages WHERE passage = passages.row)
        RETURNING passage_id, row, text""",
        (json.dumps(list(candidates)),),
    ).fetchall()
    dropped = {row["passage_id"]: row["row"] for row in deleted}
    drop_words_of(connection, owner.key, [(row["row"], row["text"]) for row in deleted])
    version = os.urandom(16) if new or dropped or embedded else owner.version
    connection.execute(
        """UPDATE collections SET version = ?, num_documents = num_documents + ?, num_passages = num_passages + ?
        WHERE key = ?""",
        (version, num_documents, len(new) - len(dropped), owner.key),
    )
    return CatalogChange(owner.key, new, dropped, owner.version, version, embedded or {})


def num_references(connection: Connection, collection_key: int, passage_ids: Sequence[str]) -> dict[str, int]:
    """By how many documents each of the collection's passages is held."""
    rows = connection.execute(
        """SELECT passage_id, (SELECT count(DISTINCT document) FROM document_passages WHERE passage = row) AS num
        FROM passages WHERE collection = ? AND passage_id IN (SELECT value FROM json_each(?))""",
        (collection_key, json.dumps(list(passage_ids))),
    ).fetchall()
    return {row["passage_id"]: row["num"] for row in rows}


def embedded_passages(connection: Connection, collection_key: int, passage_ids: Collection[str]) -> set[str]:
    """Those of these passages that are in the collection with a vector."""
    rows = connection.execute(
        """SELECT passage_id FROM passages WHERE collection = ? AND length(vector) > 0
        AND passage_id IN (SELECT value FROM json_each(?))""",
        (collection_key, json.dumps(list(passage_ids))),
    ).fetchall()
    return {row["passage_id"] for row in rows}


def passage_lengths(connection: Connection, collection_key: int, passage_ids: Collection[str]) -> dict[str, int]:
    """How many tokens those of these passages have that are in the collection."""
    rows = connection.execute(
        """SELECT passage_id, length(token_ids) / 4 AS num FROM passages
        WHERE collection = ? AND passage_id IN (SELECT value FROM json_each(?))""",
        (collection_key, json.dumps(list(passage_ids))),
    ).fetchall()
    return {row["passage_id"]: row["num"] for row in rows}


def passage_tokens(
    connection: Connection, collection_key: int, passage_ids: Collection[str]
) -> dict[str, tuple[int, ...]]:
    """Token ids of those of these passages that are in the collection."""
    rows = connection.execute(
        """SELECT row, passage_id, text, token_ids FROM passages
        WHERE collection = ? AND passage_id IN (SELECT value FROM json_each(?))""",
        (collection_key, json.dumps(list(passage_ids))),
    ).fetchall()
    return {row["passage_id"]: PassageRecord.from_row(row).token_ids for row in rows}


def document_places(connection: Connection, collection: str, collection_key: int, document_id: str) -> list[Place]:
    """Where a document's passages stand, in order."""
    rows = connection.execute(
        """SELECT passage_id, context FROM documents d JOIN document_passages ON document = d.row
        JOIN passages p ON p.row = passage WHERE d.collection = ? AND d.id = ? ORDER BY position""",
        (collection_key, document_id),
    ).fetchall()
    return [Place(collection, row["context"], row["passage_id"]) for row in rows]


def places_of(connection: Connection, names: Collection[tuple[str, str]]) -> set[Place]:
    """Which of these contexts and passage ids, paired, stand in some document, in all collections."""
    rows = connection.execute(
        """WITH wanted AS (SELECT value ->> 0 AS context, value ->> 1 AS passage_id FROM json_each(?))
        SELECT name, wanted.context, wanted.passage_id FROM wanted
        JOIN passages p ON p.passage_id = wanted.passage_id JOIN collections ON p.collection = key
        WHERE EXISTS (SELECT 1 FROM document_passages WHERE passage = p.row AND context = wanted.context)""",
        (json.dumps(list(names)),),
    ).fetchall()
    return {Place(*row) for row in rows}


def rows_by_collection(connection: Connection, passage_ids: Collection[str]) -> dict[str, dict[str, int]]:
    """Of every collection that holds some of these passages, the rows of those, by passage id; by the collection's
    name, oldest first."""
    rows = connection.execute(
        """SELECT name, passage_id, row FROM passages JOIN collections ON collection = key
        WHERE passage_id IN (SELECT value FROM json_each(?)) ORDER BY key""",
        (json.dumps(list(passage_ids)),),
    ).fetchall()
    held: dict[str, dict[str, int]] = {}
    for row in rows:
        held.setdefault(row["name"], {})[row["passage_id"]] = row["row"]
    return held


def passage_vectors(connection: Connection, rows: Sequence[int]) -> dict[int, NDArray[np.float32]]:
    """The vectors of passages by row; a row that is not there, or has none yet, is left out."""
    statement = """SELECT row, vector FROM passages WHERE row IN (SELECT value FROM json_each(?))
        AND length(vector) > 0"""
    found = connection.execute(statement, (json.dumps(list(rows)),)).fetchall()
    return {row["row"]: np.frombuffer(row["vector"], dtype="<f4").astype(np.float32) for row in found}


def token_arrays(connection: Connection, rows: Collection[int]) -> dict[int, NDArray[np.int32]]:
    """Token ids of passages by row; a row not there is left out."""
    found = connection.execute(
        "SELECT row, token_ids FROM passages WHERE row IN (SELECT value FROM json_each(?))", (json.dumps(list(rows)),)
    ).fetchall()
    return {row["row"]: np.frombuffer(row["token_ids"], "<i4") for row in found}


def tokens_behind(connection: Connection, row: int, *, limit: int) -> list[PassageTokens]:
    """At most `limit` passages, of all collections, whose rows are greater; ascending."""
    found = connection.execute(
        """SELECT row, name, passage_id, token_ids FROM passages JOIN collections ON collection = key
        WHERE row > ? ORDER BY row LIMIT ?""",
        (row, limit),
    ).fetchall()
    return [
        PassageTokens(own["row"], own["name"], own["passage_id"], np.frombuffer(own["token_ids"], "<i4"))
        for own in found
    ]
