"""`kvblend documents`: what a collection holds. `kvblend ingest` puts it there."""

import sys
from pathlib import Path
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

__all__ = ["documents_app"]

documents_app = typer.Typer(help="Documents of a collection; `kvblend ingest` adds them.", no_args_is_help=True)

DocumentId = Annotated[str, typer.Argument(help="The document's id, as `list` shows it.")]


@documents_app.command(name="list")
def list_all(collection: Collection, url: URL = None, api_key: APIKey = None, as_json: AsJSON = False) -> None:
    """List the documents of a collection, by id."""
    with connect(url, api_key) as client:
        found = list(client.list_documents(collection))
    if as_json:
        from kvblend.core.rest import DocumentList

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
def passages(
    collection: Collection, document: DocumentId, url: URL = None, api_key: APIKey = None, as_json: AsJSON = False
) -> None:
    """Print the passages that a document was split into, in its order."""
    with connect(url, api_key) as client:
        found = list(client.document_passages(collection, document))
    if as_json:
        from kvblend.core.rest import DocumentPassages

        print_json(DocumentPassages(passages=found))
        return
    console = Console(highlight=False)
    for number, passage in enumerate(found):
        console.print(f"{number}: {passage.passage_id[:12]}, {passage.num_tokens} tokens", style="dim")
        console.print(f"{passage.text}\n", markup=False, soft_wrap=True)


@documents_app.command()
def source(
    collection: Collection,
    document: DocumentId,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", dir_okay=False, help="Write it here, not to standard output.")
    ] = None,
    url: URL = None,
    api_key: APIKey = None,
) -> None:
    """Print a document as it was uploaded, byte by byte."""
    with connect(url, api_key) as client:
        content = client.document_source(collection, document)
    if output is None:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
    else:
        output.write_bytes(content)


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
