"""Passages with a document that holds each, as a search gives them back: by one statement, however many they are."""

import json
from collections.abc import Sequence
from sqlite3 import Connection, Row

from kvblend.retriever.records import DOCUMENT_COLUMNS, DocumentRecord, FoundPassage, PassageRecord

__all__ = ["EVERYWHERE", "found_passages", "surrounding_passages"]

MAX_PLACES, MAX_CONTEXTS = 64, 8
"""Of one passage, how many of its first places are looked at, and how many contexts taken."""
EVERYWHERE: tuple[str, Sequence[object]] = ("1", ())
"""An expression, with its parameters, that lets everything through."""

DOCUMENT_NAMES = [column.strip() for column in DOCUMENT_COLUMNS.split(",")]
PASSAGE = f"""p.row AS row, p.passage_id AS passage_id, p.text AS text, p.token_ids AS token_ids,
    (SELECT json_group_object(context, first) FROM (
        SELECT context, min(document) AS first FROM (
            SELECT context, document FROM document_passages INDEXED BY documents_by_passage
            WHERE passage = p.row ORDER BY document, position LIMIT {MAX_PLACES}
        ) GROUP BY context ORDER BY first, context LIMIT {MAX_CONTEXTS}
    )) AS contexts"""
"""Columns of a passage `p`; of its contexts each with the row of the first document that has it."""


def found_passages(
    connection: Connection, rows: Sequence[int], where: tuple[str, Sequence[object]] = EVERYWHERE
) -> dict[int, FoundPassage]:
    """Passages by row, each with the first of its documents `d` that `where` lets through, and the contexts of all."""
    condition, parameters = where
    found = connection.execute(
        f"""SELECT {PASSAGE}, place.position AS position, {", ".join(f"d.{name} AS {name}" for name in DOCUMENT_NAMES)}
        FROM json_each(?) JOIN passages p ON p.row = value
        JOIN document_passages place ON (place.document, place.position) = (
            SELECT document, position FROM document_passages JOIN documents d ON document = d.row
            WHERE passage = p.row AND {condition} ORDER BY document, position LIMIT 1
        )
        JOIN documents d ON d.row = place.document""",
        (json.dumps(list(rows)), *parameters),
    ).fetchall()
    by_row = {
        row["row"]: _found(row, DocumentRecord.from_row({name: row[name] for name in DOCUMENT_NAMES})) for row in found
    }
    return {row: by_row[row] for row in rows if row in by_row}


def surrounding_passages(
    connection: Connection, collection_key: int, found: FoundPassage, num_around: int
) -> dict[int, FoundPassage]:
    """By position, a passage that was found and so many before and after it in its document."""
    around = connection.execute(
        f"""SELECT {PASSAGE}, place.position AS position FROM documents d
        JOIN document_passages place ON place.document = d.row JOIN passages p ON p.row = place.passage
        WHERE d.collection = ? AND d.id = ? AND place.position BETWEEN ? AND ? ORDER BY place.position""",
        (collection_key, found.document.id, found.position - num_around, found.position + num_around),
    ).fetchall()
    return {row["position"]: _found(row, found.document) for row in around}


def _found(row: Row, document: DocumentRecord) -> FoundPassage:
    firsts: dict[str, int] = json.loads(row["contexts"])
    contexts = tuple(sorted(firsts, key=lambda context: (firsts[context], context)))
    return FoundPassage(PassageRecord.from_row(row), document, row["position"], contexts)
