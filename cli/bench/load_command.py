"""The command `kvblend bench load`."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from kvblend.cli.bench.known import require_known
from kvblend.cli.bench.load_table import load_tables
from kvblend.cli.json_output import AsJSON, print_json

__all__ = ["load"]


def load(
    model: Annotated[str, typer.Argument(help="A model folder or hub name; `demo` is the demo model.")] = "demo",
    trace: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A trace in RAGPulse's shape; a Zipf trace of our own."),
    ] = None,
    mode: Annotated[
        list[str] | None, typer.Option(help="blend, prefix_cache, none; repeatable; all where not given.")
    ] = None,
    clients: Annotated[
        list[int] | None, typer.Option(min=1, help="Clients that wait for their answers; repeatable; 8.")
    ] = None,
    rate: Annotated[
        list[float] | None, typer.Option(min=0.001, help="Poisson arrivals a second, besides; repeatable.")
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Measured requests of each row.")] = 32,
    warm_requests: Annotated[int, typer.Option(min=1, help="Requests of the trace in front of them.")] = 48,
    context_tokens: Annotated[int, typer.Option(min=100, help="Passages' tokens of the trace's mean request.")] = 3000,
    answer_tokens: Annotated[int, typer.Option(min=2, help="Tokens of every answer.")] = 16,
    bystanders: Annotated[int, typer.Option(min=0, help="Plain requests that decode meanwhile.")] = 1,
    ingested: Annotated[
        bool, typer.Option("--ingested", help="Store the measured requests' passages first, too, as an ingest does.")
    ] = False,
    repeat: Annotated[bool, typer.Option("--repeat", help="Ask identical requests again, too.")] = False,
    curve: Annotated[
        bool, typer.Option("--curve", help="Hit rate over time with a store for a tenth of the passages, too.")
    ] = False,
    curve_requests: Annotated[int, typer.Option(min=1, help="Requests of the curve, the trace's first.")] = 320,
    seed: Annotated[int, typer.Option(min=0, help="Of the Zipf trace and the arrivals.")] = 0,
    dtype: Annotated[str | None, typer.Option(help="vLLM's dtype; where not given, what `serve` chooses here.")] = None,
    as_json: AsJSON = False,
) -> None:
    """The service under load: time to first token, throughput and other requests' decode gaps on a request trace."""
    from kvblend.cli.bench.served_dtype import served_machine
    from kvblend.cli.demo_service import demo_server
    from kvblend.cli.models import fetch_embedding_model, resolve_model
    from kvblend.eval.bench.load import LoadSettings, load_bench
    from kvblend.eval.bench.load_run import MODES
    from kvblend.eval.trace import read_trace, zipf_trace

    require_known("--mode", mode or (), MODES)
    settings = LoadSettings(
        modes=[known for known in MODES if not mode or known in mode],
        clients=clients or [8],
        rates=rate or [],
        num_measured=requests,
        num_warm=warm_requests,
        context_tokens=context_tokens,
        answer_tokens=answer_tokens,
        num_bystanders=bystanders,
        ingested=ingested,
        repeat=repeat,
        num_curve=curve_requests if curve else 0,
        seed=seed,
    )
    requests_of = read_trace(trace) if trace else zipf_trace(seed)
    path, console = resolve_model(model), Console(stderr=True)
    embedding_model = fetch_embedding_model()

    def service(max_model_len: int, variables: Mapping[str, str]) -> AbstractContextManager[str]:
        return demo_server(path, embedding_model, None, max_model_len, console, variables=variables, dtype=dtype)

    measured = load_bench(path, requests_of, settings, console, service=service)
    result = {"machine": served_machine(path, dtype), **measured}
    if as_json:
        print_json(result)
        return
    for table in load_tables(result):
        Console().print(table)
