"""Options of the commands that retrieve."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from kvblend.core.choices import SearchMode
from kvblend.core.errors import InvalidRequestError

__all__ = ["Filter", "MinScore", "Mode", "Neighbors", "Rerank", "TopK", "parse_filter"]

TopK = Annotated[int, typer.Option(min=1, max=64, help="Passages to retrieve.")]
Mode = Annotated[SearchMode | None, typer.Option(help="How to search; the collection's where not given.")]
Filter = Annotated[
    str | None, typer.Option("--filter", help='Of documents\' metadata, as JSON: \'{"year": {"gte": 2020}}\'.')
]
MinScore = Annotated[float | None, typer.Option(help="The least score of a source.")]
Neighbors = Annotated[int, typer.Option(min=0, max=8, help="Passages around each one found, on either side.")]
Rerank = Annotated[bool, typer.Option("--rerank", help="Let the service's reranker order what was found.")]


def parse_filter(text: str | None) -> Mapping[str, Any] | None:
    """Read `--filter`. Raises InvalidRequestError where it is no JSON object."""
    try:
        value = None if text is None else json.loads(text)
    except ValueError as error:
        raise InvalidRequestError(f"--filter is no JSON: {error}", param="filter") from error
    if value is not None and not isinstance(value, dict):
        raise InvalidRequestError(f"--filter is {text!r}; it must be a JSON object", param="filter")
    return value
