"""Every kernel against its floor, wherever this runs."""

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

from kvblend.cli.bench.table import rows_table

__all__ = ["kernels", "kernels_bench"]


def kernels_bench() -> dict[str, Any]:
    """Measure on the GPU if there is one; on CPU the references, at small shapes and without floors."""
    import torch

    from kvblend.triton_kernels.benchmark import kernel_results

    on_gpu = torch.cuda.is_available()
    rows = [
        {
            "kernel": result.kernel,
            "shape": result.shape,
            "dtype": result.dtype,
            "ms_p50": result.ms_p50,
            "floor_ms": result.floor_ms,
            "fraction_of_floor": result.fraction_of_floor,
            "max_error": result.max_error,
        }
        for result in kernel_results(torch.device("cuda" if on_gpu else "cpu"))
    ]
    return {"device": torch.cuda.get_device_name() if on_gpu else "cpu", "results": rows, "blend": []}


def kernels(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Each Triton kernel checked against its reference, then timed against its floor."""
    result = kernels_bench()
    if as_json:
        json.dump(result, sys.stdout)
        sys.stdout.write("\n")
        return
    rows = result["results"]
    Console().print(rows_table(rows, list(rows[0]), title=f"Kernels on {result['device']}"))
