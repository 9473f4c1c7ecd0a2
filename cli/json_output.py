"""What a command prints where a program reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["AsJSON", "print_json"]

AsJSON = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def print_json(answer: BaseModel | Mapping[str, Any]) -> None:
    """Print one line on standard output, the same on a terminal and in a pipe."""
    typer.echo(json.dumps(answer) if isinstance(answer, Mapping) else answer.model_dump_json())
