"""The command `kvblend bench drop-in`."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console

from kvblend.cli.bench.table import rows_table
from kvblend.cli.json_output import AsJSON, print_json
from kvblend.core.errors import InvalidRequestError

__all__ = ["drop_in"]


def drop_in(
    passages: Annotated[int, typer.Option(min=100, help="Of the catalog.")] = 100_000,
    passage_tokens: Annotated[int, typer.Option(min=32, max=2048)] = 500,
    prompt_tokens: Annotated[int, typer.Option(min=32, max=131_072)] = 8192,
    held: Annotated[list[int] | None, typer.Option(min=0, help="Passages in a prompt, repeatable; 16 and 0.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Prompts of each kind.")] = 200,
    folder: Annotated[Path | None, typer.Option(file_okay=False, help="Where the catalog lies; the system's.")] = None,
    as_json: AsJSON = False,
) -> None:
    """Find passages of a large catalog in the prompts of plain requests: CPU time, memory, and the share found."""
    from kvblend.eval.bench.drop_in import drop_in_bench

    numbers = held or [16, 0]
    most = min(passages, prompt_tokens // passage_tokens)
    if max(numbers) > most:
        raise InvalidRequestError(
            f"--held is {max(numbers)}: {prompt_tokens} tokens hold at most {most} of {passages} passages", param="held"
        )
    console = Console(stderr=True)
    with TemporaryDirectory(dir=folder) as disk:
        result = drop_in_bench(
            Path(disk),
            num_passages=passages,
            passage_tokens=passage_tokens,
            prompt_tokens=prompt_tokens,
            held=numbers,
            repeats=repeats,
            say=console.print,
        )
    if as_json:
        print_json(result)
        return
    rows = result["results"]
    Console().print(rows_table(rows, list(rows[0]), title=f"drop-in on {result['machine']['cpu']}"))
