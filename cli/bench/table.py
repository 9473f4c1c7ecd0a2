"""A benchmark's result as a person reads it."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

__all__ = ["result_table", "result_title", "rows_table", "shown"]


def result_table(result: dict[str, Any]) -> Table:
    """All columns of a result's rows."""
    rows = result["results"]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return rows_table(rows, columns, title=result_title(result))


def result_title(result: dict[str, Any]) -> str:
    """What was measured where."""
    machine = result["machine"]
    return f"{result['model']}, {machine['dtype']}, {machine['threads']} thread(s) on {machine['cpu']}"


def rows_table(rows: Sequence[dict[str, Any]], columns: Sequence[str], *, title: str) -> Table:
    """The `columns` of `rows`; an interval is two numbers."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(shown(row.get(column)) for column in columns))
    return table


def shown(value: Any) -> str:
    """A cell's text: three digits of a number, nothing for None."""
    if isinstance(value, tuple):
        return " to ".join(shown(part) for part in value)
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "" if value is None else str(value)
