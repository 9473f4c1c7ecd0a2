"""Rows of the catalog's passages table, within a transaction that the catalog holds."""

import json
import os
from collections.abc import Mapping, Sequence
from sqlite3 import Connection

import numpy as np
from numpy.typing import NDArray

from kvblend.retriever.packing import PassageText
from kvblend.retriever.records import DOCUMENT_COLUMNS, CatalogChange, CollectionState, DocumentRecord, PassageRecord

__all__ = [
    "MissingVectorsError",
    "collections_holding",
    "drop_unreferenced",
    "found_passages",
    "num_references",
    "passages_of",
    "put_passages",
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
) -> tuple[dict[str, int], dict[str, int]]:
    """Insert the passages that the collection lacks; returns the rows of all by passage id, and those of the new.

    Raises:
        MissingVectorsError: a passage that it lacks has no vector.
    """
    by_id = {passage.passage_id: passage for passage in passages}
    known = connection.execute(
        """SELECT passage_id, row FROM passages
        WHERE collection = ? AND passage_id IN (SELECT value FROM json_each(?))""",
        (collection_key, json.dumps(list(by_id))),
    ).fetchall()
    rows: dict[str, int] = {row["passage_id"]: row["row"] for row in known}
    missing = [passage_id for passage_id in by_id if passage_id not in rows]
    if any(passage_id not in vectors for passage_id in missing):
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
                np.ascontiguousarray(vectors[passage_id], dtype="<f4").tobytes(),
            ),
        )
        assert cursor.lastrowid is not None
        new[passage_id] = cursor.lastrowid
    return rows | new, new


def drop_unreferenced(
    connection: Connection, owner: CollectionState, candidates: Sequence[int], new: dict[str, int]
) -> CatalogChange:
    """Delete those of the candidate rows that no document holds any more; `new` ones were put before."""
    deleted = connection.execute(
        """DELETE FROM passages WHERE row IN (SELECT value FROM json_each(?))
        AND NOT EXISTS (SELECT 1 FROM document_passages WHERE passage = passages.row) RETURNING passage_id, row""",
        (json.dumps(list(candidates)),),
    ).fetchall()
    dropped = {row["passage_id"]: row["row"] for row in deleted}
    version = os.urandom(16) if new or dropped else owner.version
    connection.execute("UPDATE collections SET version = ? WHERE key = ?", (version, owner.key))
    return CatalogChange(owner.key, new, dropped, owner.version, version)


def num_references(connection: Connection, collection_key: int, passage_ids: Sequence[str]) -> dict[str, int]:
    """By how many documents each of the collection's passages is held."""
    rows = connection.execute(
        """SELECT passage_id, (SELECT count(DISTINCT document) FROM document_passages WHERE passage = row) AS num
        FROM passages WHERE collection = ? AND passage_id IN (SELECT value FROM json_each(?))""",
        (collection_key, json.dumps(list(passage_ids))),
    ).fetchall()
    return {row["passage_id"]: row["num"] for row in rows}


def collections_holding(connection: Connection, passage_ids: Sequence[str]) -> dict[str, list[str]]:
    """The names of the collections that hold each passage."""
    rows = connection.execute(
        """SELECT passage_id, name FROM passages JOIN collections ON collection = key
        WHERE passage_id IN (SELECT value FROM json_each(?)) ORDER BY name""",
        (json.dumps(list(passage_ids)),),
    ).fetchall()
    holders: dict[str, list[str]] = {}
    for row in rows:
        holders.setdefault(row["passage_id"], []).append(row["name"])
    return holders


def found_passages(connection: Connection, rows: Sequence[int]) -> dict[int, tuple[PassageRecord, DocumentRecord]]:
    """Passages by row, each with the first of its documents."""
    columns = ", ".join(f"d.{column.strip()}" for column in DOCUMENT_COLUMNS.split(","))
    found = {}
    for number in rows:
        passage = connection.execute(
            "SELECT row, passage_id, text, token_ids FROM passages WHERE row = ?", (number,)
        ).fetchone()
        document = connection.execute(
            f"""SELECT {columns} FROM document_passages JOIN documents d ON document = d.row
            WHERE passage = ? ORDER BY document LIMIT 1""",
            (number,),
        ).fetchone()
        if passage is not None and document is not None:
            found[number] = (PassageRecord.from_row(passage), DocumentRecord.from_row(document))
    return found
