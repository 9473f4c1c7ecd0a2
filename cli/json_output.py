"""What a command prints where a program reads it."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from pydantic import BaseModel

__all__ = ["AsJSON", "print_json"]

AsJSON = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def print_json(answer: BaseModel | Mapping[str, Any]) -> None:
    """Print one line on standard output, the same on a terminal and in a pipe."""
    typer.echo(answer.model_dump_json() if isinstance(answer, BaseModel) else json.dumps(answer))
