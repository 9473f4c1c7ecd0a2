"""Retrieved passages as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from kvblend.core.rest import Source

__all__ = ["source_table"]


def source_table(sources: Sequence[Source]) -> Table:
    """Best first: the similarity, the document, and the passage's beginning, as much as fits in a line."""
    table = Table("score", "document", box=None, header_style="dim", expand=True)
    table.add_column("passage", no_wrap=True, overflow="ellipsis", ratio=1)
    for source in sources:
        score = "" if source.score is None else f"{source.score:.3f}"
        table.add_row(score, escape(source.document_name or ""), escape(" ".join(source.text.split())))
    return table
