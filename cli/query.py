"""`kvblend query`: ask a collection."""

from typing import Annotated, Any

import typer
from rich.console import Console

from kvblend.cli.chat import chat as converse
from kvblend.cli.connection import URL, APIKey, CollectionOption, connect
from kvblend.cli.json_output import AsJSON, print_json
from kvblend.cli.report_line import report_line
from kvblend.cli.retrieval_options import Filter, MinScore, Mode, Neighbors, Rerank, TopK, parse_filter
from kvblend.cli.source_table import source_table
from kvblend.core.choices import OrderName, Reuse, SelectorName

__all__ = ["query"]


def query(
    question: Annotated[str | None, typer.Argument(help="The question; with --chat the first one.")] = None,
    collection: CollectionOption = "default",
    chat: Annotated[
        bool, typer.Option("--chat", help="A conversation: questions are typed, or lines of standard input.")
    ] = False,
    top_k: TopK = 8,
    recompute_ratio: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="The calibrated or default one where not given.")
    ] = None,
    target_kl: Annotated[
        float | None, typer.Option(help="Instead: blend at the smallest ratio calibrated for this mean KL, in nats.")
    ] = None,
    selector: Annotated[SelectorName | None, typer.Option(help="The engine's where not given.")] = None,
    reuse: Annotated[Reuse, typer.Option(help="`prefix_cache` and `none` are there for comparison.")] = "blend",
    order: Annotated[
        OrderName | None, typer.Option(help="Of the passages in the prompt; the collection's where not given.")
    ] = None,
    mode: Mode = None,
    filter: Filter = None,
    min_score: MinScore = None,
    neighbors: Neighbors = 0,
    rerank: Rerank = False,
    max_tokens: Annotated[int, typer.Option(min=1, max=8192, help="The longest answer.")] = 128,
    url: URL = None,
    api_key: APIKey = None,
    as_json: AsJSON = False,
) -> None:
    """Ask a collection.

    The answer is printed as it comes, then its sources and how its context was made.
    """
    from kvblend.core.rest import BlendOptions, QueryDelta, QueryResponse
    from kvblend.sdk.routes import checked

    choices: dict[str, Any] = {
        "top_k": top_k,
        "recompute_ratio": recompute_ratio,
        "target_kl": target_kl,
        "selector": selector,
        "reuse": reuse,
        "order": order,
        "mode": mode,
        "filter": parse_filter(filter),
        "min_score": min_score,
        "neighbors": neighbors,
        "rerank": rerank,
    }
    console = Console(highlight=False)
    with connect(url, api_key) as client:
        if chat:
            blend = BlendOptions(**checked(BlendOptions, collection=collection, **choices))
            converse(client, blend, question, max_tokens=max_tokens, as_json=as_json)
            return
        if question is None:
            raise typer.BadParameter("give a question, or --chat", param_hint="QUESTION")
        for item in client.stream_query(collection, question, max_tokens=max_tokens, **choices):
            if isinstance(item, QueryDelta) and not as_json:
                console.print(item.text, end="", markup=False, soft_wrap=True)
            elif isinstance(item, QueryResponse) and as_json:
                print_json(item)
            elif isinstance(item, QueryResponse):
                console.print("\n")
                console.print(source_table(item.sources))
                console.print(report_line(item.report), style="dim", markup=False)
