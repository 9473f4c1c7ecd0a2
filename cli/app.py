"""The commands, and how their failures are said."""

import sys
from typing import NoReturn

import typer
from rich.console import Console

from kvblend.cli.bench import bench_app
from kvblend.cli.calibrate import calibrate
from kvblend.cli.calibration import calibration
from kvblend.cli.collections import collections_app
from kvblend.cli.demo import demo
from kvblend.cli.documents import documents_app
from kvblend.cli.extras import missing_package
from kvblend.cli.ingest import ingest
from kvblend.cli.jobs import jobs_app
from kvblend.cli.kv import kv_app
from kvblend.cli.query import query
from kvblend.cli.search import search
from kvblend.cli.serve import serve
from kvblend.cli.status import status
from kvblend.core.errors import KVBlendError

__all__ = ["app", "run"]

app = typer.Typer(
    name="kvblend",
    help="RAG on stock vLLM that never prefills the same passage twice.",
    epilog="Exit status: 0, done; 1, refused or failed, for the reason on standard error; 2, options that are not "
    "understood; 3, `calibrate` found no ratio that meets its target; 130, interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(calibrate)
app.command()(demo)
app.command()(ingest)
app.command()(query)
app.command()(search)
app.command()(status)
app.command()(calibration)
app.add_typer(collections_app, name="collections")
app.add_typer(documents_app, name="documents")
app.add_typer(jobs_app, name="jobs")
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
        _fail(missing_package(error.name).message)
    except ValueError as error:  # pydantic's too, which is imported where a command needs it
        from pydantic import ValidationError

        if not isinstance(error, ValidationError):
            raise
        from kvblend.core.settings import Settings, TracingSettings

        prefixes = {own.__name__: own.model_config.get("env_prefix", "") for own in (Settings, TracingSettings)}
        if error.title not in prefixes:
            raise
        first = error.errors()[0]
        name = f"{prefixes[error.title]}{'_'.join(map(str, first['loc'][:1])).upper()}"
        _fail(f"{name}={first['input']}: {first['msg']}")
    except OSError as error:
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}")


def _fail(message: str) -> NoReturn:
    console = Console(stderr=True)
    console.print("[bold red]error:[/]", end=" ")
    console.print(message, markup=False, highlight=False, soft_wrap=True)
    sys.exit(1)
