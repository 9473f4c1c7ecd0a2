"""The command `kvblend bench retrieval`."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console

from kvblend.cli.bench.table import rows_table
from kvblend.cli.json_output import AsJSON, print_json
from kvblend.core.errors import InvalidRequestError

__all__ = ["retrieval"]

SIZES = "10000,100000,1000000"
LEAST = 1000


def retrieval(
    sizes: Annotated[str, typer.Option(help="Passages, several by commas; multiples of 1,000.")] = SIZES,
    dim: Annotated[int, typer.Option(min=64, max=4096, help="Of the vectors, which are made up.")] = 384,
    folder: Annotated[Path | None, typer.Option(file_okay=False, help="On the disk to measure; the system's.")] = None,
    as_json: AsJSON = False,
) -> None:
    """Ingest and search in large collections: rate, latency beside an ingest, recall, memory and start."""
    from kvblend.eval.bench.retrieval import retrieval_bench

    console = Console(stderr=True)
    with TemporaryDirectory(dir=folder) as disk:
        result = retrieval_bench(Path(disk), _parse_sizes(sizes), dim=dim, say=console.print)
    if as_json:
        print_json(result)
        return
    rows = result["results"]
    Console().print(rows_table(rows, list(rows[0]), title=f"retrieval on {result['machine']['cpu']}"))


def _parse_sizes(text: str) -> list[int]:
    try:
        sizes = [int(size) for size in text.split(",")]
    except ValueError:
        raise InvalidRequestError(f"--sizes is {text!r}; it must be whole numbers and commas", param="sizes") from None
    for size in sizes:
        if size < LEAST or size % LEAST:
            raise InvalidRequestError(f"--sizes has {size}; each must be a multiple of {LEAST}", param="sizes")
    return sizes
