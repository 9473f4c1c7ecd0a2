"""The command `kvblend bench kernels`."""

import json
import sys
from typing import Annotated

import typer
from rich.console import Console

from kvblend.cli.bench.table import rows_table

__all__ = ["kernels"]


def kernels(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Each Triton kernel checked and timed against its floor; whole blends against full prefill."""
    from kvblend.eval.bench.kernels import kernels_bench

    result = kernels_bench()
    if as_json:
        json.dump(result, sys.stdout)
        sys.stdout.write("\n")
        return
    for key, title in (("results", "Kernels"), ("blend", "Whole blends")):
        rows = result[key]
        Console().print(rows_table(rows, list(rows[0]), title=f"{title} on {result['device']}"))
