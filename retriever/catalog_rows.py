"""Single rows of the catalog: found, or a NotFoundError."""

from sqlite3 import Connection, Row

from kvblend.core.collection_name import name_in_tenant
from kvblend.core.errors import NotFoundError
from kvblend.retriever.records import CollectionRecord, CollectionSettings, CollectionState

__all__ = [
    "COLLECTION_COLUMNS",
    "SETTINGS_COLUMNS",
    "collection_record",
    "collection_settings",
    "collection_state",
    "document_row",
    "one_row",
]

SETTINGS_COLUMNS = "name, passage_tokens, settings"
COLLECTION_COLUMNS = f"{SETTINGS_COLUMNS}, created_at, num_documents, num_passages"


def one_row(connection: Connection, statement: str, *parameters: object) -> Row | None:
    """The first row that a statement gives; None where it gives none."""
    row: Row | None = connection.execute(statement, parameters).fetchone()
    return row


def collection_state(connection: Connection, name: str) -> CollectionState:
    """A collection's key and version."""
    row = _collection_row(connection, name, columns="key, version")
    return CollectionState(row["key"], row["version"])


def collection_settings(connection: Connection, name: str) -> CollectionSettings:
    """What a collection was made with."""
    return CollectionSettings.from_row(_collection_row(connection, name, columns=SETTINGS_COLUMNS))


def collection_record(connection: Connection, name: str) -> CollectionRecord:
    """A collection with the counts of what is in it, which are kept and never taken."""
    return CollectionRecord.from_row(_collection_row(connection, name, columns=COLLECTION_COLUMNS))


def document_row(connection: Connection, collection_key: int, document_id: str, *, columns: str) -> Row:
    """These columns of a document."""
    where = f"SELECT {columns} FROM documents WHERE collection = ? AND id = ?"
    row = one_row(connection, where, collection_key, document_id)
    if row is None:
        raise NotFoundError(f"there is no document {document_id!r} in the collection", param="document")
    return row


def _collection_row(connection: Connection, name: str, *, columns: str) -> Row:
    row = one_row(connection, f"SELECT {columns} FROM collections WHERE name = ?", name)
    if row is None:
        raise NotFoundError(f"there is no collection {name_in_tenant(name)!r}", param="collection")
    return row
