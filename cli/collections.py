"""`kvblend collections`: what documents are put into."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from kvblend.cli.confirmation import Yes, confirm
from kvblend.cli.connection import URL, APIKey, Collection, connect
from kvblend.cli.facts_table import facts_table
from kvblend.cli.json_output import AsJSON, print_json
from kvblend.core.choices import OrderName, SearchMode

if TYPE_CHECKING:
    from kvblend.core import rest
    from kvblend.sdk.routes import CollectionLimits

__all__ = ["collections_app"]

collections_app = typer.Typer(help="Collections, which documents are put into.", no_args_is_help=True)

Number = TypeVar("Number", int, float)

NewName = Annotated[str, typer.Argument(help="Letters, digits, `_`, `.` and `-`.")]
Quota = Annotated[str | None, typer.Option("--kv-quota", help="Bytes of KV in any one tier, as 20GiB, or `none`.")]
TTL = Annotated[str | None, typer.Option("--kv-ttl", help="Seconds without use after which KV is deleted, or `none`.")]
Order = Annotated[OrderName | None, typer.Option(help="Of its passages in prompts, where a request names none.")]
Mode = Annotated[SearchMode | None, typer.Option(help="Of its searches, where a request names none.")]


@collections_app.command(name="list")
def list_all(url: URL = None, api_key: APIKey = None, as_json: AsJSON = False) -> None:
    """List all collections."""
    with connect(url, api_key) as client:
        found = client.list_collections()
    if as_json:
        from kvblend.core import rest

        print_json(rest.CollectionList(collections=found))
        return
    table = Table("collection", "documents", "passages", "KV quota", "KV time to live", box=None, header_style="dim")
    for collection in found:
        table.add_row(
            collection.name, f"{collection.num_documents:,}", f"{collection.num_passages:,}", *_limits(collection)
        )
    Console().print(table)


@collections_app.command()
def show(collection: Collection, url: URL = None, api_key: APIKey = None, as_json: AsJSON = False) -> None:
    """Show one collection."""
    with connect(url, api_key) as client:
        _print(client.get_collection(collection), as_json)


@collections_app.command()
def create(
    collection: NewName,
    passage_tokens: Annotated[int, typer.Option(min=32, max=2048, help="The longest passage.")] = 256,
    preamble: Annotated[
        str | None, typer.Option(help="The instruction that its prompts begin with; the service's where not given.")
    ] = None,
    warm_context: Annotated[
        str | None,
        typer.Option(help="What passages are encoded behind: `document` (the default), `neutral`, or a text."),
    ] = None,
    order: Order = None,
    mode: Mode = None,
    kv_quota: Quota = None,
    kv_ttl: TTL = None,
    url: URL = None,
    api_key: APIKey = None,
    as_json: AsJSON = False,
) -> None:
    """Make a collection. Its limits, its order and its mode can change later, the rest by a rebuild or not at all."""
    limits = _changes(kv_quota, kv_ttl, order, mode)
    with connect(url, api_key) as client:
        made = client.create_collection(
            collection, preamble=preamble, warm_context=warm_context, passage_tokens=passage_tokens, **limits
        )
    _print(made, as_json)


@collections_app.command()
def update(
    collection: Collection,
    order: Order = None,
    mode: Mode = None,
    kv_quota: Quota = None,
    kv_ttl: TTL = None,
    url: URL = None,
    api_key: APIKey = None,
    as_json: AsJSON = False,
) -> None:
    """Change the limits of a collection's KV, its order and its mode, as far as they are named."""
    with connect(url, api_key) as client:
        _print(client.update_collection(collection, **_changes(kv_quota, kv_ttl, order, mode)), as_json)


@collections_app.command()
def rebuild(
    collection: Collection,
    passage_tokens: Annotated[
        int | None, typer.Option(help="The longest passage, in tokens; as it is where not given.")
    ] = None,
    url: URL = None,
    api_key: APIKey = None,
    as_json: AsJSON = False,
) -> None:
    """Split and embed a collection's documents anew, from what the service keeps of them; begins a job."""
    with connect(url, api_key) as client:
        job = client.rebuild_collection(collection, passage_tokens=passage_tokens)
    if as_json:
        print_json(job)
    else:
        Console().print(f"job {job.id} rebuilds {len(job.document_ids):,} documents")


@collections_app.command()
def delete(
    collection: Collection, yes: Yes = False, url: URL = None, api_key: APIKey = None, as_json: AsJSON = False
) -> None:
    """Delete a collection: its documents, vectors and passage KV."""
    with connect(url, api_key) as client:
        found = client.get_collection(collection)
        confirm(f"Delete {collection!r} and its {found.num_documents:,} documents?", yes)
        client.delete_collection(collection)
    if as_json:
        print_json({"deleted": [collection]})


def _changes(
    kv_quota: str | None, kv_ttl: str | None, order: OrderName | None, mode: SearchMode | None
) -> CollectionLimits:
    from pydantic import ByteSize

    changes: CollectionLimits = {}
    if kv_quota is not None:
        changes["kv_quota_bytes"] = None if kv_quota == "none" else _number("--kv-quota", kv_quota, ByteSize)
    if kv_ttl is not None:
        changes["kv_ttl_s"] = None if kv_ttl == "none" else _number("--kv-ttl", kv_ttl, float)
    if order is not None:
        changes["order"] = order
    if mode is not None:
        changes["mode"] = mode
    return changes


def _number(option: str, value: str, wanted: type[Number]) -> Number:
    """Raises typer.BadParameter, which names the value."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(wanted).validate_python(value)
    except ValidationError as error:
        raise typer.BadParameter(f"{value!r}: {error.errors()[0]['msg']}", param_hint=option) from error


def _limits(collection: rest.Collection) -> tuple[str, str]:
    quota, ttl = collection.kv_quota_bytes, collection.kv_ttl_s
    return "none" if quota is None else decimal(quota), "none" if ttl is None else f"{ttl:,.0f} s"


def _print(collection: rest.Collection, as_json: bool) -> None:
    if as_json:
        print_json(collection)
        return
    quota, ttl = _limits(collection)
    facts = {
        "collection": collection.name,
        "documents": f"{collection.num_documents:,}",
        "passages": f"{collection.num_passages:,}, of {collection.passage_tokens} tokens at most",
        "model": collection.model,
        "embedding model": collection.embedding_model,
        "preamble": collection.preamble,
        "warm context": collection.warm_context,
        "order": collection.order,
        "mode": collection.mode,
        "KV quota": quota,
        "KV time to live": ttl,
    }
    Console().print(facts_table(facts))
