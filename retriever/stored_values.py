"""JSON values under names, in the catalog's file: of a collection, which they go with, or of the whole catalog."""

import json
from sqlite3 import Connection
from typing import Any

from kvblend.retriever.catalog_rows import one_row

__all__ = ["put_value", "stored_value", "to_json"]


def stored_value(connection: Connection, collection: int | None, name: str) -> Any:
    """The value of this name; None where there is none. `collection` is its key, None the whole catalog."""
    row = one_row(connection, "SELECT value FROM stored_values WHERE collection IS ? AND name = ?", collection, name)
    return None if row is None else json.loads(row["value"])


def put_value(connection: Connection, collection: int | None, name: str, value: Any) -> None:
    """Store a value in place of the one before."""
    connection.execute("DELETE FROM stored_values WHERE collection IS ? AND name = ?", (collection, name))
    connection.execute("INSERT INTO stored_values VALUES (?, ?, ?)", (collection, name, to_json(value)))


def to_json(value: Any) -> str:
    """Its JSON as it is: what UTF-8 cannot hold fails here, and not whoever reads it."""
    return json.dumps(value, allow_nan=False, sort_keys=True, ensure_ascii=False)
