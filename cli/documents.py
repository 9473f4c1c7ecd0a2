"""`kvblend documents`: what a collection holds. `kvblend ingest` puts it there."""

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kvblend.cli.confirmation import Yes, confirm
from kvblend.cli.connection import URL, APIKey, Collection, connect
from kvblend.cli.facts_table import facts_table
from kvblend.cli.json_output import AsJSON, print_json
from kvblend.cli.local_time import local_time
from kvblend.core.rest import DocumentList

__all__ = ["documents_app"]

documents_app = typer.Typer(help="Documents of a collection; `kvblend ingest` adds them.", no_args_is_help=True)

DocumentId = Annotated[str, typer.Argument(help="The document's id, as `list` shows it.")]


@documents_app.command(name="list")
def list_all(collection: Collection, url: URL = None, api_key: APIKey = None, as_json: AsJSON = False) -> None:
    """List the documents of a collection, by id."""
    with connect(url, api_key) as client:
        found = list(client.list_documents(collection))
    if as_json:
        print_json(DocumentList(documents=found))
        return
    table = Table("document", "passages", "tokens", "ingested", box=None, header_style="dim")
    for document in found:
        counts = (f"{document.num_passages:,}", f"{document.num_tokens:,}")
        table.add_row(escape(document.id), *counts, local_time(document.created_at))
    Console().print(table)


@documents_app.command()
def show(
    collection: Collection, document: DocumentId, url: URL = None, api_key: APIKey = None, as_json: AsJSON = False
) -> None:
    """Show one document."""
    with connect(url, api_key) as client:
        found = client.get_document(collection, document)
    if as_json:
        print_json(found)
        return
    facts = {
        "document": found.id,
        "name": found.name,
        "media type": found.media_type,
        "passages": f"{found.num_passages:,}",
        "tokens": f"{found.num_tokens:,}",
        "ingested": local_time(found.created_at),
        **{f"metadata {key}": str(value) for key, value in found.metadata.items()},
    }
    Console().print(facts_table(facts))


@documents_app.command()
def delete(
    collection: Collection,
    documents: Annotated[list[str], typer.Argument(help="Ids, as `list` shows them.")],
    yes: Yes = False,
    url: URL = None,
    api_key: APIKey = None,
    as_json: AsJSON = False,
) -> None:
    """Delete documents: their text, vectors, and passage KV that nothing else uses."""
    confirm(f"Delete {', '.join(map(repr, documents))} of {collection!r}?", yes)
    with connect(url, api_key) as client:
        for document in documents:
            client.delete_document(collection, document)
    if as_json:
        print_json({"deleted": documents})
