"""The benchmarks' commands."""

import json
import sys
from typing import Annotated

import typer

__all__ = ["bench_app"]

bench_app = typer.Typer(
    no_args_is_help=True, help="Measure against vLLM's own full prefill and prefix cache, in one run."
)


@bench_app.callback()
def bench() -> None:
    """Measure against vLLM's own full prefill and prefix cache, in one run."""


@bench_app.command()
def ttft(
    model: Annotated[str, typer.Argument(help="A model folder or hub name; `demo` is the demo model.")] = "demo",
    context_tokens: Annotated[
        list[int] | None, typer.Option(min=500, help="Context lengths; 1000, 3000, 6000.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, max=50, help="Timed runs of each mode.")] = 3,
    dtype: Annotated[
        str, typer.Option(help="vLLM's dtype; on a CPU without bf16 units float32 is much faster.")
    ] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Time to first token: full prefill, prefix cache on reordered passages, full reuse, and blends."""
    from rich.console import Console

    from kvblend.cli.bench.ttft import TTFTBench
    from kvblend.cli.models import fetch_demo_model

    folder = str(fetch_demo_model()) if model == "demo" else model
    console = Console(stderr=True)
    result = TTFTBench(folder, dtype=dtype, repeats=repeats, console=console).run(context_tokens or [1000, 3000, 6000])
    if as_json:
        json.dump(result, sys.stdout)
        sys.stdout.write("\n")
        return
    from kvblend.cli.bench.table import ttft_table

    Console().print(ttft_table(result))
