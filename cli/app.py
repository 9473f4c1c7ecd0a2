"""The commands, and how their failures are said."""

import sys
from typing import NoReturn

import typer
from rich.console import Console

from kvblend.cli.bench import bench_app
from kvblend.cli.calibrate import calibrate
from kvblend.cli.demo import demo
from kvblend.cli.ingest import ingest
from kvblend.cli.kv import kv_app
from kvblend.cli.query import query
from kvblend.cli.serve import serve
from kvblend.core.errors import KVBlendError

__all__ = ["app", "run"]

app = typer.Typer(
    name="kvblend",
    help="RAG on stock vLLM that never prefills the same passage twice.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(calibrate)
app.command()(demo)
app.command()(ingest)
app.command()(query)
app.add_typer(kv_app, name="kv")
app.add_typer(bench_app, name="bench")


def run() -> None:
    """Run the command line."""
    try:
        app()
    except KVBlendError as error:
        _fail(error.message)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "kvblend":
            raise
        _fail(f"this command needs the package {error.name!r}, which is not installed: pip install 'kvblend[serve]'")


def _fail(message: str) -> NoReturn:
    console = Console(stderr=True)
    console.print("[bold red]error:[/]", end=" ")
    console.print(message, markup=False, highlight=False)
    sys.exit(1)
