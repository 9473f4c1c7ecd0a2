"""The benchmarks' commands."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from kvblend.cli.bench.drop_in_command import drop_in
from kvblend.cli.bench.kernels import kernels
from kvblend.cli.bench.load_command import load
from kvblend.cli.bench.needle_command import needle
from kvblend.cli.bench.quality_command import quality
from kvblend.cli.bench.replay_command import replay
from kvblend.cli.bench.retrieval_command import retrieval
from kvblend.cli.bench.retrieval_quality_command import retrieval_quality
from kvblend.cli.bench.soak_command import soak
from kvblend.cli.bench.store_command import store
from kvblend.cli.bench.table import result_table
from kvblend.cli.json_output import AsJSON, print_json

__all__ = ["bench_app"]

bench_app = typer.Typer(
    no_args_is_help=True, help="Measure against vLLM's own full prefill and prefix cache, in one run."
)

bench_app.command()(quality)
bench_app.command()(needle)
bench_app.command()(replay)
bench_app.command()(kernels)
bench_app.command()(load)
bench_app.command()(store)
bench_app.command()(retrieval)
bench_app.command()(soak)
bench_app.command()(retrieval_quality)
bench_app.command()(drop_in)

Model = Annotated[str, typer.Argument(help="A model folder or hub name; `demo` is the demo model.")]
DType = Annotated[str | None, typer.Option(help="vLLM's dtype; where not given, that of `kvblend serve` here.")]


@bench_app.command()
def ttft(
    model: Model = "demo",
    context_tokens: Annotated[list[int] | None, typer.Option(min=500, help="Lengths; 1000, 3000 and 6000.")] = None,
    repeats: Annotated[int, typer.Option(min=1, max=50, help="Timed runs of each mode.")] = 3,
    dtype: DType = None,
    as_json: AsJSON = False,
) -> None:
    """Time to first token: full prefill, prefix cache on reordered passages, full reuse, and blends by step."""
    from kvblend.cli.bench.served_dtype import served_dtype
    from kvblend.cli.bench.ttft_table import ttft_table
    from kvblend.eval.bench.ttft import ttft_bench

    lengths = context_tokens or [1000, 3000, 6000]

    def bench(path: str, console: Console) -> dict[str, Any]:
        return ttft_bench(path, lengths, dtype=served_dtype(path, dtype), repeats=repeats, console=console)

    _run(model, bench, as_json, table=ttft_table)


@bench_app.command()
def kl(
    questions: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A JSON file in MuSiQue's shape.")],
    model: Model = "demo",
    num_questions: Annotated[int, typer.Option(min=1)] = 30,
    num_passages: Annotated[int, typer.Option(min=1, max=64)] = 5,
    passage_tokens: Annotated[int, typer.Option(min=32, max=2048)] = 220,
    ratio: Annotated[list[float] | None, typer.Option(min=0, max=1, help="Ratios; 0, 0.05, 0.15 and 0.3.")] = None,
    dtype: DType = None,
    as_json: AsJSON = False,
) -> None:
    """Divergence from full prefill through the connector, by recompute ratio."""
    from kvblend.cli.bench.served_dtype import served_dtype
    from kvblend.eval.bench.kl import kl_bench

    def bench(path: str, console: Console) -> dict[str, Any]:
        return kl_bench(
            path,
            questions,
            num_questions=num_questions,
            num_passages=num_passages,
            passage_tokens=passage_tokens,
            ratios=ratio or [0.0, 0.05, 0.15, 0.30],
            dtype=served_dtype(path, dtype),
            console=console,
        )

    _run(model, bench, as_json)


@bench_app.command()
def ingest(
    model: Model = "demo",
    num_documents: Annotated[int, typer.Option(min=1, max=16)] = 6,
    num_passages: Annotated[int, typer.Option(min=2, max=64, help="Of a document.")] = 12,
    passage_tokens: Annotated[int, typer.Option(min=32, max=2048)] = 256,
    dtype: DType = None,
    as_json: AsJSON = False,
) -> None:
    """Documents encoded and stored, in tokens a second, beside vLLM's prefill of the same documents."""
    from kvblend.cli.bench.served_dtype import served_dtype
    from kvblend.eval.bench.ingest import ingest_bench

    def bench(path: str, console: Console) -> dict[str, Any]:
        return ingest_bench(
            path,
            num_documents=num_documents,
            num_passages=num_passages,
            passage_tokens=passage_tokens,
            dtype=served_dtype(path, dtype),
            console=console,
        )

    _run(model, bench, as_json)


@bench_app.command()
def itl(
    model: Model = "demo",
    context_tokens: Annotated[int, typer.Option(min=500)] = 1000,
    pairs: Annotated[int, typer.Option(min=1, max=100)] = 5,
    dtype: DType = None,
    as_json: AsJSON = False,
) -> None:
    """Decode gaps of a blended request beside those of the same request plain."""
    from kvblend.cli.bench.served_dtype import served_dtype
    from kvblend.eval.bench.itl import itl_bench

    def bench(path: str, console: Console) -> dict[str, Any]:
        return itl_bench(
            path, context_tokens=context_tokens, pairs=pairs, dtype=served_dtype(path, dtype), console=console
        )

    _run(model, bench, as_json)


@bench_app.command()
def rest(
    model: Model = "demo",
    repeats: Annotated[int, typer.Option(min=1, max=50, help="Times that each question is asked.")] = 3,
    passages: Annotated[int, typer.Option(min=1, max=64, help="Passages in a prompt.")] = 12,
    as_json: AsJSON = False,
) -> None:
    """What the service adds to the engine's time to first token: a client's beside vLLM's, request by request."""
    from kvblend.cli.bench.rest_command import rest_bench

    def bench(path: str, console: Console) -> dict[str, Any]:
        return rest_bench(path, repeats=repeats, passages=passages, console=console)

    _run(model, bench, as_json)


def _run(
    model: str,
    bench: Callable[[str, Console], dict[str, Any]],
    as_json: bool,
    *,
    table: Callable[[dict[str, Any]], Table] = result_table,
) -> None:
    from kvblend.cli.models import resolve_model

    result = bench(resolve_model(model), Console(stderr=True))
    if as_json:
        print_json(result)
    else:
        Console().print(table(result))
