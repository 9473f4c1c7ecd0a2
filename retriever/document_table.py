"""Documents in the catalog's file: their rows, the order of their passages, and their own bytes."""

import time
from collections.abc import Mapping, Sequence
from sqlite3 import Connection

from zstandard import decompress

from kvblend.retriever.catalog_rows import one_row
from kvblend.retriever.packing import PassageText
from kvblend.retriever.records import DOCUMENT_COLUMNS, NewDocument
from kvblend.retriever.stored_values import to_json

__all__ = ["document_source", "has_document", "is_whole", "put_document_rows"]


def has_document(connection: Connection, collection: int, document_id: str) -> bool:
    """Whether the collection of this key has a document of this id."""
    found = "SELECT 1 FROM documents WHERE collection = ? AND id = ?"
    return one_row(connection, found, collection, document_id) is not None


def put_document_rows(
    connection: Connection,
    collection: int,
    document: NewDocument,
    passages: Sequence[PassageText],
    rows: Mapping[str, int],
    contexts: Sequence[str],
    *,
    packed: bytes,
) -> None:
    """Put a document in place of the one with its id in the collection of this key.

    `rows`: of its passages, by their ids. `contexts`: of each passage; none: all are "". `packed`: its own bytes,
    compressed.
    """
    num_tokens = sum(len(passage.token_ids) for passage in passages)
    number = connection.execute(
        f"""INSERT INTO documents (collection, {DOCUMENT_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (collection, id) DO UPDATE SET name = excluded.name, media_type = excluded.media_type,
        content_hash = excluded.content_hash, metadata = excluded.metadata,
        num_passages = excluded.num_passages, num_tokens = excluded.num_tokens RETURNING row""",
        (collection, document.id, document.name, document.media_type, document.content_hash,
         to_json(document.metadata), len(passages), num_tokens, time.time()),
    ).fetchone()["row"]  # fmt: skip
    connection.execute("DELETE FROM document_passages WHERE document = ?", (number,))
    connection.executemany(
        "INSERT INTO document_passages VALUES (?, ?, ?, ?)",
        (
            (number, position, rows[passage.passage_id], context)
            for position, (passage, context) in enumerate(zip(passages, contexts or [""] * len(passages), strict=True))
        ),
    )
    connection.execute("INSERT OR REPLACE INTO document_sources VALUES (?, ?)", (number, packed))


def document_source(connection: Connection, row: int) -> bytes | None:
    """The own bytes of the document of this row; None where they were not kept."""
    found = one_row(connection, "SELECT data FROM document_sources WHERE document = ?", row)
    return None if found is None else decompress(found["data"])


def is_whole(connection: Connection, row: int) -> bool:
    """Whether the document of this row has its source, and all its passages have a vector."""
    source = one_row(connection, "SELECT 1 FROM document_sources WHERE document = ?", row)
    bare = one_row(
        connection,
        """SELECT 1 FROM document_passages JOIN passages p ON p.row = passage
        WHERE document = ? AND length(vector) = 0""",
        row,
    )
    return source is not None and bare is None
