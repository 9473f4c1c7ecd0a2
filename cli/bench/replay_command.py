"""The command `kvblend bench replay`."""

from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.console import Console

from kvblend.cli.bench.known import require_known
from kvblend.cli.bench.table import rows_table
from kvblend.cli.json_output import AsJSON, print_json

__all__ = ["replay"]

ORDERS = ("rank", "fit", "free", "document")
CAPACITIES, SHARES, RATIO = [0.10, 0.25, 1.0], [0.0, 0.1], 0.15
COLUMNS = (
    "capacity", "order", "variants_share", "exact", "fits", "reused", "missing", "fitting_passages", "recompute_ratio",
    "computed_ratio", "encodes",
)  # fmt: skip
SAMPLE_COLUMNS = (
    "capacity", "order", "variants_share", "num_requests", "kl", "first_sentence", "ttft_ms", "full_ttft_ms", "sooner",
)  # fmt: skip


def replay(
    trace: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="In RAGPulse's shape; a Zipf trace of our own.")
    ] = None,
    capacity: Annotated[
        list[float] | None, typer.Option(min=0.001, max=10, help="Of the working set, repeatable; 0.1, 0.25, 1.")
    ] = None,
    order: Annotated[list[str] | None, typer.Option(help="rank, fit, free, document; repeatable; the first 3.")] = None,
    share: Annotated[
        list[float] | None, typer.Option(min=0, max=1, help="Of the store, for variants, repeatable; 0 and 0.1.")
    ] = None,
    eviction: Annotated[str, typer.Option(help="lru, s3-fifo, cost-aware.")] = "s3-fifo",
    ratio: Annotated[float, typer.Option(min=0, max=1, help="Recomputed of what does not fit.")] = RATIO,
    fit_ratio: Annotated[float, typer.Option(min=0, max=1, help="Recomputed of what fits and is not exact.")] = 0.0,
    sample: Annotated[int, typer.Option(min=0, help="Requests of each steady state to be measured.")] = 0,
    model: Annotated[str, typer.Option(help="For a corpus or a sample: a folder or hub name.")] = "demo",
    corpus: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Documents; with a sample, Python's library.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the sample; vLLM's name of one.")] = None,
    as_json: AsJSON = False,
) -> None:
    """A trace of requests on a bounded store: what is exact, fits, is reused and is missing, over time."""
    from kvblend.cli.bench.served_dtype import served_dtype
    from kvblend.cli.models import resolve_model
    from kvblend.core.settings import EvictionName
    from kvblend.eval.replay.replay_bench import replay_bench, replay_settings
    from kvblend.eval.replay.shares import Ratios

    require_known("--order", order or (), ORDERS)
    require_known("--eviction", [eviction], get_args(EvictionName))
    path = resolve_model(model) if sample or corpus else None
    result = replay_bench(
        path,
        trace,
        corpus,
        replay_settings(capacity or CAPACITIES, order or ORDERS[:3], share or SHARES, eviction=eviction),  # type: ignore[arg-type]
        ratios=Ratios(ratio, fit_ratio),
        num_sampled=sample,
        dtype=served_dtype(path, dtype) if path else "auto",
        console=Console(stderr=True),
    )
    if as_json:
        print_json(result)
        return
    steady = [row for row in result["results"] if row["steady"]]
    Console().print(rows_table(steady, COLUMNS, title=f"{result['trace']}, steady state"))
    if result["sample"]:
        Console().print(rows_table(result["sample"], SAMPLE_COLUMNS, title=f"{result['model']} on {result['corpus']}"))
