"""What `kvblend bench rest` measures on: the demo's service and its corpus."""

from pathlib import Path
from typing import Any

from rich.console import Console

from kvblend.cli.bench.served_dtype import served_machine
from kvblend.cli.comparison import warm_up
from kvblend.cli.demo_service import COLLECTION, QUESTIONS, demo_service, ingest_corpus
from kvblend.cli.models import fetch_embedding_model
from kvblend.eval.bench.rest import added_rows

__all__ = ["rest_bench"]


def rest_bench(model: str, *, repeats: int, passages: int, console: Console) -> dict[str, Any]:
    """Ask the demo's questions of its corpus. Returns {machine, model, results}, the rows of `added_rows`."""
    with demo_service(model, fetch_embedding_model(), None, 4096, console) as client:
        ingest_corpus(client, console)
        warm_up(client, COLLECTION, top_k=passages)
        rows = added_rows(client, COLLECTION, QUESTIONS, repeats=repeats, passages=passages, console=console)
    return {"machine": served_machine(model), "model": Path(model).name, "results": rows}
