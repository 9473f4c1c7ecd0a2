"""The result of `bench ttft` as a person reads it, in 80 columns."""

from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from kvblend.cli.bench.table import result_title, shown
from kvblend.eval.bench.efficiency import TARGETS
from kvblend.eval.bench.ttft_row import STEPS

__all__ = ["ttft_table"]


def ttft_table(result: dict[str, Any]) -> Table:
    """A row a mode, a section a context length; a step's time with its ratio to its floor, red above the target.

    `speedup` is full prefill's time to first token over the row's.
    """
    verified = result["verified"]
    targets = ", ".join(f"{step} {TARGETS[f'{step}_efficiency']:g}" for step in STEPS)
    table = Table(
        title=result_title(result),
        caption=f"verified: a blend at ratio 1 is full prefill, KL {verified['kl']:.1g} of {verified['tolerance']:g}\n"
        f"medians in ms; in brackets, in times the floor, at most:\n{targets}",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    for name in ("tokens", "mode", "TTFT", "speedup", *STEPS, "question"):
        table.add_column(name, justify="left" if name == "mode" else "right")
    full_ms: dict[int, float] = {}
    for row in result["results"]:
        context = row["context_tokens"]
        if context not in full_ms:  # full prefill comes first
            table.add_section()
            full_ms[context] = row["ttft_ms_p50"]
        table.add_row(*_cells(row, speedup=full_ms[context] / row["ttft_ms_p50"]))
    return table


def _cells(row: dict[str, Any], *, speedup: float) -> list[str | Text]:
    steps_ms = row["steps_ms"] or {}
    mode = row["mode"].replace("_", " ")
    return [
        str(row["context_tokens"]),
        f"{mode} {row['recompute_ratio']:.2f}" if row["mode"] == "blend" else mode,
        shown(row["ttft_ms_p50"]),
        f"{speedup:.1f}",
        *(_step(steps_ms.get(step), step, row[f"{step}_efficiency"]) for step in STEPS),
        shown(steps_ms.get("question")),
    ]


def _step(spent_ms: float | None, step: str, efficiency: float | None) -> Text:
    if spent_ms is None or efficiency is None:
        return Text()
    style = "red" if efficiency > TARGETS[f"{step}_efficiency"] else "green"
    return Text.assemble(shown(spent_ms), " (", (f"{efficiency:.2f}", style), ")")
