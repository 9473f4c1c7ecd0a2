"""`kvblend query`: ask a collection."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from kvblend.cli.connection import DEFAULT_URL, URL, APIKey, connect
from kvblend.core.plan import SelectorName
from kvblend.core.report import BlendReport
from kvblend.core.rest import QueryDelta, QueryResponse, Reuse, SearchResponse

__all__ = ["describe", "query"]


def query(
    question: Annotated[str, typer.Argument(help="The question.")],
    collection: Annotated[str, typer.Option("--collection", "-c", help="The collection to ask.")] = "default",
    top_k: Annotated[int, typer.Option(min=1, max=64, help="Passages to retrieve.")] = 8,
    recompute_ratio: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="The calibrated or default one where not given.")
    ] = None,
    target_kl: Annotated[
        float | None, typer.Option(help="Instead: blend at the smallest ratio calibrated for this mean KL, in nats.")
    ] = None,
    selector: Annotated[SelectorName | None, typer.Option(help="The engine's where not given.")] = None,
    reuse: Annotated[Reuse, typer.Option(help="`prefix_cache` and `none` are there for comparison.")] = "blend",
    max_tokens: Annotated[int, typer.Option(min=1, max=8192, help="The longest answer.")] = 128,
    url: URL = DEFAULT_URL,
    api_key: APIKey = None,
) -> None:
    """Ask a collection; the answer is printed as it comes, then its sources and how its context was made."""
    console = Console(highlight=False)
    with connect(url, api_key) as client:
        for item in client.stream_query(
            collection,
            question,
            top_k=top_k,
            recompute_ratio=recompute_ratio,
            target_kl=target_kl,
            selector=selector,
            reuse=reuse,
            max_tokens=max_tokens,
        ):
            if isinstance(item, QueryDelta):
                console.print(item.text, end="", markup=False, soft_wrap=True)
            elif isinstance(item, QueryResponse):
                console.print("\n")
                console.print(_sources(SearchResponse(sources=item.sources)))
                console.print(describe(item.report), style="dim")


def describe(report: BlendReport) -> str:
    """How a context was made, in one line."""
    counts = f"{report.reused_tokens} reused, {report.selected_tokens} selected, {report.recomputed_tokens} recomputed"
    ttft = "" if report.ttft_ms is None else f", first token after {report.ttft_ms:.0f} ms"
    reason = f" ({report.reason})" if report.reason else ""
    held = ", held to its calibration" if report.calibrated else ""
    return f"{report.outcome}{reason}: of {report.context_tokens} context tokens {counts}{ttft}{held}"


def _sources(found: SearchResponse) -> Table:
    table = Table("score", "document", "passage", box=None, header_style="dim")
    for source in found.sources:
        score = "" if source.score is None else f"{source.score:.3f}"
        table.add_row(score, source.document_name or "", " ".join(source.text.split())[:90])
    return table
