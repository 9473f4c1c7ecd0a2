"""The command `kvblend bench kernels`."""

from rich.console import Console

from kvblend.cli.bench.table import rows_table
from kvblend.cli.json_output import AsJSON, print_json

__all__ = ["kernels"]


def kernels(as_json: AsJSON = False) -> None:
    """Each Triton kernel checked and timed against its floor; whole blends against full prefill."""
    from kvblend.eval.bench.kernels import kernels_bench

    result = kernels_bench()
    if as_json:
        print_json(result)
        return
    for key, title in (("results", "Kernels"), ("blend", "Whole blends")):
        rows = result[key]
        Console().print(rows_table(rows, list(rows[0]), title=f"{title} on {result['device']}"))
