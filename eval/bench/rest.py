"""Time to first token of a client of the service, beside what vLLM took of it."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import Progress

from kvblend.core.report import BlendReport
from kvblend.core.rest import QueryDelta, QueryResponse, Reuse
from kvblend.eval.bench.ttft_row import Timing, ttft_fields
from kvblend.sdk import Client

__all__ = ["added_rows"]

MAX_TOKENS = 4
MODES: tuple[Reuse, ...] = ("blend", "none")


def added_rows(
    client: Client, collection: str, questions: Sequence[str], *, repeats: int, passages: int, console: Console
) -> list[dict[str, Any]]:
    """Ask a running service as a stream, blended and by full prefill in turns; a row a mode.

    A client's time is that from its request to the first text that it sees: retrieval, the plan, vLLM, and what lies
    between. vLLM's, of the same request, is that from the service's request to vLLM's first chunk. Rows {mode,
    requests, blended, prompt_tokens, ttft_ms_p50, ttft_ms_p20, ttft_ms_p80, engine_ttft_ms_p50, added_ms_p50,
    added_ms_max}, the last two of each request's difference; `blended` counts the requests that were not prefilled.
    """
    asked: dict[Reuse, list[tuple[float, BlendReport]]] = {mode: [] for mode in MODES}
    with Progress(console=console) as progress:
        for number, question in enumerate(progress.track([*questions] * repeats, description="questions")):
            for mode in MODES:
                # a number of its own, so that no answer is vLLM's prefix cache's
                asked[mode].append(_ask(client, collection, f"{question} ({number})", mode, passages))
    return [_row(mode, answers) for mode, answers in asked.items()]


def _ask(client: Client, collection: str, question: str, mode: Reuse, passages: int) -> tuple[float, BlendReport]:
    """Milliseconds to the first text, and the report."""
    began, first_ms, report = time.perf_counter(), None, None
    events = client.stream_query(collection, question, top_k=passages, reuse=mode, max_tokens=MAX_TOKENS)
    for event in events:
        if isinstance(event, QueryDelta) and first_ms is None:
            first_ms = (time.perf_counter() - began) * 1e3
        elif isinstance(event, QueryResponse):
            report = event.report
    if first_ms is None or report is None or report.ttft_ms is None:
        raise RuntimeError(f"the answer to {question!r} has no text or no time: {report}")
    return first_ms, report


def _row(mode: Reuse, answers: list[tuple[float, BlendReport]]) -> dict[str, Any]:
    engine = [report.ttft_ms or 0.0 for _, report in answers]
    added = [first_ms - own for (first_ms, _), own in zip(answers, engine, strict=True)]
    return {
        "mode": mode,
        "requests": len(answers),
        "blended": sum(report.outcome == "blended" for _, report in answers),
        "prompt_tokens": statistics.median(report.prompt_tokens for _, report in answers),
        **ttft_fields([Timing(first_ms) for first_ms, _ in answers]),
        "engine_ttft_ms_p50": statistics.median(engine),
        "added_ms_p50": statistics.median(added),
        "added_ms_max": max(added),
    }
