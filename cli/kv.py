"""`kvblend kv`: the store's figures."""

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from kvblend.cli.connection import DEFAULT_URL, URL, APIKey, connect
from kvblend.cli.kv_size_command import size

__all__ = ["kv_app"]

kv_app = typer.Typer(help="The store of passage KV.", no_args_is_help=True)


@kv_app.callback()
def kv() -> None:
    """The store of passage KV."""


kv_app.command()(size)


@kv_app.command()
def stats(url: URL = DEFAULT_URL, api_key: APIKey = None) -> None:
    """Print what each tier holds, fastest first."""
    table = Table("tier", "files", "pinned", "used", "budget", "folder")
    with connect(url, api_key) as client:
        for tier in client.kv_stats().tiers:
            used, budget = decimal(tier.used_bytes), decimal(tier.budget_bytes)
            table.add_row(tier.name, str(tier.num_files), str(tier.num_pinned), used, budget, tier.path)
    Console().print(table)
