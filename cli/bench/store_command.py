"""The command `kvblend bench store`."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console

from kvblend.cli.bench.known import require_known
from kvblend.cli.bench.table import rows_table
from kvblend.cli.json_output import AsJSON, print_json

__all__ = ["store"]

PARTS = ("io", "remote", "lookup", "evict", "codecs")

SIZES = (1 << 20, 8 << 20, 32 << 20)


def store(
    part: Annotated[
        list[str] | None, typer.Option(help="io, remote, lookup, evict, codecs; repeatable; all but codecs if none.")
    ] = None,
    size: Annotated[list[int] | None, typer.Option(min=1 << 16, help="Bytes a passage; 1, 8 and 32 MiB.")] = None,
    remote: Annotated[
        list[str] | None, typer.Option(help="A remote tier's URL, repeatable; a Valkey server is started if none.")
    ] = None,
    passages: Annotated[list[int] | None, typer.Option(min=100, help="In a tier; 1,000, 100,000, 1,000,000.")] = None,
    trace: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A trace in RAGPulse's shape, besides our own.")
    ] = None,
    model: Annotated[str, typer.Option(help="Whose KV codecs are measured on.")] = "demo",
    questions: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="In MuSiQue's or SQuAD's shape, for codecs.")
    ] = None,
    num_questions: Annotated[int, typer.Option(min=1, help="For codecs.")] = 8,
    folder: Annotated[Path | None, typer.Option(file_okay=False, help="On the disk to measure; the system's.")] = None,
    as_json: AsJSON = False,
) -> None:
    """The store: tiers beside their floors, lookups at any size, eviction policies on traces, and codecs."""
    require_known("--part", part or (), PARTS)
    wanted = part or ["io", "remote", "lookup", "evict"]
    console = Console(stderr=True)
    result: dict[str, Any] = {}
    with TemporaryDirectory(dir=folder) as disk, TemporaryDirectory(dir="/dev/shm") as memory:
        if "io" in wanted:
            from kvblend.eval.bench.store_io import io_rows

            result["results"] = list(io_rows(Path(memory), Path(disk), size or SIZES))
        if "remote" in wanted:
            from kvblend.cli.engine import free_port
            from kvblend.eval.bench.store_remote import remote_rows

            far = list(remote_rows(remote or (), size or SIZES, valkey_port=free_port()))
            result["results"] = result.get("results", []) + far
            if not far:
                console.print("No remote tier: there is no --remote, and no Valkey or Redis server to start.")
        if "lookup" in wanted:
            from kvblend.eval.bench.store_lookup import lookup_rows

            result["lookup"] = lookup_rows(Path(memory), Path(disk), passages or [1_000, 100_000, 1_000_000])
    if "evict" in wanted:
        from kvblend.eval.bench.store_eviction import eviction_rows

        result["evict"] = eviction_rows(trace)
    if "codecs" in wanted:
        from kvblend.cli.bench.served_dtype import served_machine
        from kvblend.cli.models import resolve_model
        from kvblend.eval.bench.store_codecs import codec_rows

        path = resolve_model(model)
        dtype = served_machine(path)["dtype"]
        rows = codec_rows(
            path, questions, num_questions=num_questions, recompute_ratio=0.15, dtype=dtype, console=console
        )
        result["codecs"] = list(rows)
    if as_json:
        print_json(result)
        return
    for name, rows_of in result.items():
        if rows_of:
            Console().print(rows_table(rows_of, list(rows_of[0]), title=name))
