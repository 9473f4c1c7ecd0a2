"""`kvblend search`: what a collection has on a question."""

from typing import Annotated

import typer
from rich.console import Console

from kvblend.cli.connection import URL, APIKey, CollectionOption, connect
from kvblend.cli.json_output import AsJSON, print_json
from kvblend.cli.retrieval_options import Filter, MinScore, Mode, Neighbors, Rerank, TopK, parse_filter
from kvblend.cli.source_table import source_table

__all__ = ["search"]


def search(
    query: Annotated[str, typer.Argument(help="What to search for.")],
    collection: CollectionOption = "default",
    top_k: TopK = 8,
    mode: Mode = None,
    filter: Filter = None,
    min_score: MinScore = None,
    neighbors: Neighbors = 0,
    rerank: Rerank = False,
    url: URL = None,
    api_key: APIKey = None,
    as_json: AsJSON = False,
) -> None:
    """Retrieve the passages that answer a question best, best first, and answer nothing."""
    with connect(url, api_key) as client:
        found = client.search(
            collection,
            query,
            top_k=top_k,
            mode=mode,
            filter=parse_filter(filter),
            min_score=min_score,
            neighbors=neighbors,
            rerank=rerank,
        )
    if as_json:
        from kvblend.core.rest import SearchResponse

        print_json(SearchResponse(sources=found))
    else:
        Console().print(source_table(found))
