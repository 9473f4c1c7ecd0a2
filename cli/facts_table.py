"""One thing in the terminal, a fact a line."""

from collections.abc import Mapping

from rich.markup import escape
from rich.table import Table

__all__ = ["facts_table"]


def facts_table(facts: Mapping[str, str]) -> Table:
    """Names and what is said of each, as it is written."""
    table = Table(box=None, show_header=False)
    table.add_column(style="dim")
    table.add_column()
    for name, value in facts.items():
        table.add_row(escape(name), escape(value))
    return table
