"""A benchmark's result as a person reads it."""

from typing import Any

from rich.table import Table

__all__ = ["ttft_table"]


def ttft_table(result: dict[str, Any]) -> Table:
    """A row a mode, with its speed as a ratio to the full prefill of the same run."""
    table = Table(title=f"Time to first token, {result['machine']['cpu']}")
    for column in (
        "context",
        "mode",
        "ratio",
        "TTFT p50 ms",
        "full prefill / this",
        "KL",
        "load",
        "probe",
        "repair",
        "question",
    ):
        table.add_column(column, justify="right")
    full = {row["context_tokens"]: row["ttft_ms_p50"] for row in result["results"] if row["mode"] == "full_prefill"}
    for row in result["results"]:
        steps = row["steps_ms"] or {}
        table.add_row(
            str(row["context_tokens"]),
            row["mode"],
            "" if row["recompute_ratio"] is None else f"{row['recompute_ratio']:.2f}",
            f"{row['ttft_ms_p50']:.0f}",
            f"{full[row['context_tokens']] / row['ttft_ms_p50']:.1f}",
            "" if row["kl"] is None else f"{row['kl']:.4f}",
            *(f"{steps[name]:.0f}" if name in steps else "" for name in ("load", "probe", "repair", "question")),
        )
    return table
