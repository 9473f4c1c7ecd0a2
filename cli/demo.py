"""`kvblend demo`: a whole service on a real corpus, compared with vLLM alone, in one command."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from kvblend.cli.json_output import print_json
from kvblend.cli.progress import status_progress

__all__ = ["demo"]


def demo(
    model: Annotated[
        str | None,
        typer.Option(
            help="What to serve, as `kvblend serve` takes it; by default what this machine is fast enough for."
        ),
    ] = None,
    home: Annotated[Path | None, typer.Option(help="Keep the service's files here; else they are deleted.")] = None,
    passages: Annotated[int, typer.Option(min=1, max=64, help="Passages in a prompt.")] = 12,
    max_model_len: Annotated[int, typer.Option(min=2048, help="vLLM's longest prompt and answer.")] = 4096,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object at the end: `model`, and each question's answers.")
    ] = False,
) -> None:
    """Start a service, ask it questions, and compare it with vLLM alone.

    Ingests Python's library documentation, and compares the time to first token with vLLM's full prefill and prefix
    cache on the same prompts. Ends by itself and leaves nothing running.
    """
    from kvblend.cli.comparison import ask, compared, summary, warm_up
    from kvblend.cli.demo_model import choose_demo_model
    from kvblend.cli.demo_service import COLLECTION, QUESTIONS, demo_service, ingest_corpus
    from kvblend.cli.model_sources import NAMED_MODELS
    from kvblend.cli.models import fetch_embedding_model, resolve_model
    from kvblend.core.machine import this_machine

    console = Console(highlight=False, stderr=as_json)
    if model is None:
        chosen = choose_demo_model(this_machine())
        console.print(f"The model is {NAMED_MODELS[chosen.name].folder_name}: {chosen.reason}")
        model = chosen.name
    model_path, embedding_model = resolve_model(model), fetch_embedding_model()
    with demo_service(model_path, embedding_model, home, max_model_len, console) as client:
        ingest_corpus(client, console)
        warm_up(client, COLLECTION, top_k=passages)
        comparisons = []
        for question in QUESTIONS:
            with status_progress(console) as progress:
                progress.add_task(f"{question} (three times: blended, full prefill, prefix cache)")
                comparison = ask(client, COLLECTION, question, top_k=passages)
            comparisons.append(comparison)
            console.print(compared(comparison))
        console.print(summary(comparisons))
    if as_json:
        print_json({"model": model, "comparisons": [comparison.as_json() for comparison in comparisons]})
