"""Which passages a metadata filter lets through, by SQL over their documents' metadata."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from kvblend.core.rest import MetadataCondition, MetadataFilter
from kvblend.retriever.catalog_reading import CollectionReading

__all__ = ["Matching", "filter_sql"]

MAX_LISTED = 50_000
"""So many matching passages are listed and compared; of more, the best of all are looked at until enough match."""
COMPARED = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
SQL = tuple[str, list[object]]


@dataclass(frozen=True)
class Matching:
    """The passages of a collection, as of one moment, that stand in a document which a filter lets through."""

    reading: CollectionReading
    filter: MetadataFilter

    @cached_property
    def sql(self) -> SQL:
        """An expression over documents `d`, and its parameters."""
        return filter_sql(self.filter)

    @cached_property
    def rows(self) -> list[int] | None:
        """The rows of all of them; None where they are many."""
        where, values = self.sql
        of_documents = f"FROM documents d WHERE collection = ? AND {where}"
        key, connection = self.reading.state.key, self.reading.connection
        number = connection.execute(f"SELECT ifnull(sum(num_passages), 0) {of_documents}", (key, *values)).fetchone()
        if number[0] > MAX_LISTED:
            return None
        return self.list_rows()

    def list_rows(self) -> list[int]:
        """The rows of all of them, however many."""
        where, values = self.sql
        found = self.reading.connection.execute(
            f"""SELECT DISTINCT passage FROM document_passages JOIN documents d ON document = d.row
            WHERE collection = ? AND {where}""",
            (self.reading.state.key, *values),
        ).fetchall()
        return [row["passage"] for row in found]

    def among(self, rows: Sequence[int]) -> set[int]:
        """Those of these rows that are of them."""
        where, values = self.sql
        found = self.reading.connection.execute(
            f"""SELECT value FROM json_each(?) AS asked WHERE EXISTS (
            SELECT 1 FROM document_passages JOIN documents d ON document = d.row
            WHERE passage = asked.value AND {where})""",
            (json.dumps(list(rows)), *values),
        ).fetchall()
        return {row["value"] for row in found}


def filter_sql(filter: MetadataFilter) -> SQL:
    """A filter as an expression over a row `d` of documents, and its parameters. No value stands in the SQL itself."""
    parts: list[SQL] = []
    for name, asked in filter.fields.items():
        if isinstance(asked, MetadataCondition):
            if asked.in_ is not None:
                parts.append(_any([_equal(name, value) for value in asked.in_]))
            parts += [
                _compared(name, operator, value)
                for field, operator in COMPARED.items()
                if (value := getattr(asked, field)) is not None
            ]
        else:
            parts.append(_equal(name, asked))
    parts += [filter_sql(part) for part in filter.and_ or []]
    if filter.or_ is not None:
        parts.append(_any([filter_sql(part) for part in filter.or_]))
    if filter.not_ is not None:
        where, values = filter_sql(filter.not_)
        parts.append((f"NOT {where}", values))
    return _joined(parts, " AND ") if parts else ("1", [])


def _equal(name: str, value: bool | int | float | str) -> SQL:
    if isinstance(value, bool):  # SQLite's own are the numbers 0 and 1
        return _field(name, f"type = '{json.dumps(value)}'")
    return _compared(name, "=", value)


def _compared(name: str, operator: str, value: int | float | str) -> SQL:
    types = "type = 'text'" if isinstance(value, str) else "type IN ('integer', 'real')"
    return _field(name, f"{types} AND value {operator} ?", value)


def _field(name: str, condition: str, *values: object) -> SQL:
    return f"EXISTS (SELECT 1 FROM json_each(d.metadata) WHERE key = ? AND {condition})", [name, *values]


def _any(parts: Sequence[SQL]) -> SQL:
    return _joined(parts, " OR ")


def _joined(parts: Sequence[SQL], word: str) -> SQL:
    return f"({word.join(where for where, _ in parts)})", [value for _, values in parts for value in values]
