"""The result of `bench load` as a person reads it, in 80 columns."""

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from kvblend.cli.bench.table import result_title, rows_table, shown

__all__ = ["load_tables"]

COLUMNS = ("mode", "traffic", "a second", "TTFT", "p95", "speedup", "whole", "gap", "p99", "hits", "errors")


def load_tables(result: dict[str, Any]) -> Iterator[Table]:
    """A row a mode, a section for each traffic, and the curve where there is one.

    `speedup` is the time to first token of the same traffic's full prefill over the row's.
    """
    table = Table(
        title=f"{result_title(result)}, {result['trace']['name']}",
        caption="medians and percentiles in ms; gap: between bystanders' tokens",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("mode", "traffic") else "right")
    prefill_ms = {_traffic(row): row["ttft_ms_p50"] for row in result["results"] if row["mode"] == "none"}
    section = None
    for row in result["results"]:
        if section not in (None, (row["repeat"], _traffic(row))):
            table.add_section()
        section = row["repeat"], _traffic(row)
        table.add_row(*_cells(row, prefill_ms=prefill_ms.get(_traffic(row))))
    if result["first_error"]:
        table.caption = Text(f"the first error: {result['first_error']}")
    yield table
    if result["curve"]:
        yield rows_table(result["curve"], list(result["curve"][0]), title="with a store for a tenth of the passages")


def _cells(row: dict[str, Any], *, prefill_ms: float | None) -> Iterator[str]:
    yield row["mode"].replace("_", " ") + (", again" if row["repeat"] else "")
    yield _traffic(row)
    yield shown(row["requests_per_s"])
    yield shown(row["ttft_ms_p50"])
    yield shown(row["ttft_ms_p95"])
    yield f"{prefill_ms / row['ttft_ms_p50']:.1f}" if prefill_ms else ""
    for name in ("e2e_ms_p50", "bystander_itl_ms_p50", "bystander_itl_ms_p99"):
        yield shown(row[name])
    yield shown(row["hit_rate"])
    yield str(row["errors"])


def _traffic(row: dict[str, Any]) -> str:
    return f"{row['rate']:g} a second" if row["concurrency"] is None else f"{row['concurrency']} clients"
