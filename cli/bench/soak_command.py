"""The command `kvblend bench soak`."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from kvblend.cli.bench.table import rows_table
from kvblend.cli.json_output import AsJSON, print_json

__all__ = ["soak"]


def soak(
    model: Annotated[str, typer.Argument(help="A model folder or hub name, for a service of its own.")] = "demo",
    minutes: Annotated[float, typer.Option(min=0.1, help="How long.")] = 30.0,
    url: Annotated[
        str | None, typer.Option(help="A service that runs on this machine already, in place of one of its own.")
    ] = None,
    every: Annotated[float, typer.Option(min=0.5, help="Seconds between samples.")] = 10.0,
    plot: Annotated[Path | None, typer.Option(dir_okay=False, help="Write a PNG; needs kvblend[plot].")] = None,
    as_json: AsJSON = False,
) -> None:
    """Mixed traffic for a while: do memory, files, sockets, KV blocks and tiers stay flat? Exits with 1 if not."""
    from kvblend.cli.demo_service import demo_server
    from kvblend.cli.models import fetch_embedding_model, resolve_model
    from kvblend.core.settings import Settings
    from kvblend.eval.bench.soak import soak_bench

    console = Console(stderr=True)
    key = Settings().api_key if url is not None else None
    with ExitStack() as stack:
        if url is None:
            url = stack.enter_context(demo_server(resolve_model(model), fetch_embedding_model(), None, 4096, console))
        result = soak_bench(url, minutes=minutes, every_s=every, api_key=key, plot=plot, say=console.print)
    if as_json:
        print_json(result)
    else:
        rows = result["results"]
        Console().print(
            rows_table(rows, list(rows[0]), title=f"{minutes:g} minutes, {sum(result['requests'].values())} requests")
        )
    if result["failures"] or not all(row["flat"] for row in result["results"]):
        raise typer.Exit(1)
