"""A benchmark's result as a person reads it."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

__all__ = ["result_table", "rows_table"]


def result_table(result: dict[str, Any]) -> Table:
    """One row a result; times to first token also as a ratio to the full prefill of the same run."""
    rows = [_flat(row) for row in result["results"]]
    full = {row["context_tokens"]: row["ttft_ms_p50"] for row in rows if row.get("mode") == "full_prefill"}
    for row in rows:
        if full:
            row["full prefill / this"] = full[row["context_tokens"]] / row["ttft_ms_p50"]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    machine = result["machine"]
    title = f"{result['model']}, {machine['dtype']}, {machine['threads']} thread(s) on {machine['cpu']}"
    return rows_table(rows, columns, title=title)


def rows_table(rows: Sequence[dict[str, Any]], columns: Sequence[str], *, title: str) -> Table:
    """The `columns` of `rows`; an interval is two numbers."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(_shown(row.get(column)) for column in columns))
    return table


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    steps = {f"{name} ms": value for name, value in (row.get("steps_ms") or {}).items()}
    return {name: value for name, value in row.items() if name != "steps_ms"} | steps


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " to ".join(_shown(part) for part in value)
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "" if value is None else str(value)
