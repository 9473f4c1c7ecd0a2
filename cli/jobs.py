"""`kvblend jobs`: how far an ingest is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from kvblend.cli.connection import URL, APIKey, Collection, connect
from kvblend.cli.facts_table import facts_table
from kvblend.cli.json_output import AsJSON, print_json
from kvblend.cli.progress import count_progress

if TYPE_CHECKING:
    from kvblend.core.rest import IngestJob

__all__ = ["jobs_app"]

jobs_app = typer.Typer(help="Ingest jobs, as `kvblend ingest --no-wait` begins them.", no_args_is_help=True)


@jobs_app.callback()
def jobs() -> None:
    """Ingest jobs, as `kvblend ingest --no-wait` begins them."""


@jobs_app.command()
def show(
    collection: Collection,
    job: Annotated[str, typer.Argument(help="The job's id.")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end, with status 1 where it fails.")] = False,
    url: URL = None,
    api_key: APIKey = None,
    as_json: AsJSON = False,
) -> None:
    """Show how far an ingest job is."""
    with connect(url, api_key) as client:
        found = client.get_job(collection, job)
        if wait:
            with count_progress(Console(stderr=True)) as progress:
                task = progress.add_task("passages", total=None)

                def watch(state: IngestJob) -> None:
                    progress.update(task, total=state.passages_total or None, completed=state.passages_done)

                found = client.wait(found, progress=watch)
    if as_json:
        print_json(found)
        return
    facts = {
        "job": found.id,
        "status": found.status,
        "documents": f"{len(found.document_ids):,}",
        "passages": f"{found.passages_done:,} of {found.passages_total:,}: {found.passages_encoded:,} encoded, "
        f"{found.passages_reused:,} had their KV already, {found.passages_deferred:,} left for their first use",
        **({"error": found.error} if found.error else {}),
        **{f"failed {id}": reason for id, reason in found.failures.items()},
    }
    Console().print(facts_table(facts))
