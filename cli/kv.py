"""`kvblend kv`: the store of passage KV, seen and steered."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from kvblend.cli.connection import URL, APIKey, Collection, connect
from kvblend.cli.json_output import AsJSON, print_json
from kvblend.cli.kv_size_command import size
from kvblend.cli.local_time import local_time

if TYPE_CHECKING:
    from kvblend.sdk import Client

__all__ = ["kv_app"]

kv_app = typer.Typer(help="The store of passage KV.", no_args_is_help=True)

DocumentId = Annotated[str | None, typer.Option("--document", help="Only this document's.")]
PassageIds = Annotated[list[str] | None, typer.Option("--passage", help="Only this passage's; repeatable.")]


@kv_app.callback()
def kv() -> None:
    """The store of passage KV."""


kv_app.command()(size)


@kv_app.command()
def stats(url: URL = None, api_key: APIKey = None, as_json: AsJSON = False) -> None:
    """Print what each tier holds, fastest first."""
    with connect(url, api_key) as client:
        found = client.kv_stats()
    if as_json:
        print_json(found)
        return
    table = Table("tier", "files", "pinned", "evicted", "used", "budget", "where", box=None, header_style="dim")
    for tier in found.tiers:
        budget = decimal(tier.budget_bytes) if tier.budget_bytes else "-"
        counts = (str(count) for count in (tier.num_files, tier.num_pinned, tier.num_evicted))
        table.add_row(tier.name, *counts, decimal(tier.used_bytes), budget, tier.path)
    Console().print(table)


@kv_app.command()
def lookup(
    collection: Collection,
    document: DocumentId = None,
    passage: PassageIds = None,
    url: URL = None,
    api_key: APIKey = None,
    as_json: AsJSON = False,
) -> None:
    """Print where the KV of a collection lies, file by file."""
    with connect(url, api_key) as client:
        found = client.kv_lookup(collection, document_id=document, passage_ids=passage)
    if as_json:
        print_json(found)
        return
    table = Table("passage", "tier", "heads", "bytes", "used or stored", "pinned", box=None, header_style="dim")
    for file in found.files:
        heads, pinned = f"{file.heads[0]}-{file.heads[1]}", "yes" if file.pinned else ""
        used, num_bytes = local_time(file.used_at), decimal(file.num_bytes)
        table.add_row(file.passage_id[:12], file.tier, heads, num_bytes, used, pinned)
    Console().print(table)
    if found.missing:
        Console().print(f"{len(found.missing)} passages have no KV: {', '.join(id[:12] for id in found.missing[:8])}")


@kv_app.command()
def pairs(
    collection: Collection,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="So many at most.")] = 20,
    url: URL = None,
    api_key: APIKey = None,
    as_json: AsJSON = False,
) -> None:
    """Print which passages the prompts of a collection bring together, the heaviest pairs first."""
    with connect(url, api_key) as client:
        found = client.kv_pairs(collection, limit=limit)
    if as_json:
        from kvblend.core.rest import KVPairs

        print_json(KVPairs(pairs=found))
        return
    table = Table("passage", "directly behind", "count", box=None, header_style="dim")
    for pair in found:
        table.add_row(pair.passage[:12], pair.before[:12], f"{pair.count:.1f}")
    Console().print(table)


@kv_app.command()
def pin(
    collection: Collection,
    document: DocumentId = None,
    passage: PassageIds = None,
    url: URL = None,
    api_key: APIKey = None,
    as_json: AsJSON = False,
) -> None:
    """Keep KV from eviction until it is unpinned."""
    _count(url, api_key, as_json, lambda client: client.kv_pin(collection, document_id=document, passage_ids=passage))


@kv_app.command()
def unpin(
    collection: Collection,
    document: DocumentId = None,
    passage: PassageIds = None,
    url: URL = None,
    api_key: APIKey = None,
    as_json: AsJSON = False,
) -> None:
    """Let KV be evicted again."""
    _count(url, api_key, as_json, lambda client: client.kv_unpin(collection, document_id=document, passage_ids=passage))


@kv_app.command()
def move(
    collection: Collection,
    to: Annotated[Literal["faster", "slower"], typer.Option("--to", help="The fastest shared tier, or a slower one.")],
    document: DocumentId = None,
    passage: PassageIds = None,
    url: URL = None,
    api_key: APIKey = None,
    as_json: AsJSON = False,
) -> None:
    """Bring KV to the fastest shared tier, or to the next slower one."""
    _count(
        url, api_key, as_json, lambda client: client.kv_move(collection, to, document_id=document, passage_ids=passage)
    )


@kv_app.command()
def clear(
    collection: Collection,
    document: DocumentId = None,
    passage: PassageIds = None,
    url: URL = None,
    api_key: APIKey = None,
    as_json: AsJSON = False,
) -> None:
    """Delete KV from every tier; the documents stay."""
    _count(url, api_key, as_json, lambda client: client.kv_clear(collection, document_id=document, passage_ids=passage))


@kv_app.command()
def compress(
    collection: Collection,
    codec: Annotated[
        Literal["int8", "entropy", "fp8", "int4"], typer.Option(help="docs/store.md has each one's cost.")
    ] = "entropy",
    document: DocumentId = None,
    passage: PassageIds = None,
    url: URL = None,
    api_key: APIKey = None,
    as_json: AsJSON = False,
) -> None:
    """Encode raw KV by a codec, in place."""
    with connect(url, api_key) as client:
        done = client.kv_compress(collection, codec, document_id=document, passage_ids=passage)
    if as_json:
        print_json(done)
        return
    Console().print(f"{done.num_files} files, {decimal(done.saved_bytes)} freed")


@kv_app.command()
def verify(url: URL = None, api_key: APIKey = None, as_json: AsJSON = False) -> None:
    """Read and check every file, and put aside what is damaged."""
    with connect(url, api_key) as client:
        report = client.kv_verify()
    if as_json:
        print_json(report)
        return
    Console().print(f"{report.num_files} files, {decimal(report.num_bytes)}: {len(report.quarantined)} damaged")
    for name in report.quarantined:
        Console().print(name, soft_wrap=True)


@kv_app.command()
def sweep(url: URL = None, api_key: APIKey = None, as_json: AsJSON = False) -> None:
    """Delete the KV that no collection holds any more."""
    with connect(url, api_key) as client:
        num_passages = client.kv_sweep()
    if as_json:
        print_json({"num_passages": num_passages})
    else:
        Console().print(f"{num_passages} passages")


def _count(url: str | None, api_key: str | None, as_json: bool, change: Callable[[Client], int]) -> None:
    with connect(url, api_key) as client:
        num_files = change(client)
    if as_json:
        print_json({"num_files": num_files})
    else:
        Console().print(f"{num_files} files")
