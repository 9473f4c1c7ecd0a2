"""How fast documents are encoded and stored, beside vLLM's own prefill of the same documents."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from kvblend.api.kv.document_windows import document_windows
from kvblend.api.kv.encode_context import EncodeContext
from kvblend.eval.bench.engine import BenchEngine
from kvblend.eval.bench.passages import bench_passages

__all__ = ["ingest_bench"]

MARGIN = 1024
"""Tokens of the model's length for what stands around a document."""
Request = tuple[list[int], dict[str, Any] | None]


def ingest_bench(
    model: str,
    *,
    num_documents: int,
    num_passages: int,
    passage_tokens: int,
    dtype: str,
    console: Console,
) -> dict[str, Any]:
    """Document tokens a second, KV stored, and of a plain prefill, by turns on the same documents, two in flight.

    The warm context is in vLLM's prefix cache, as it is while an ingest runs; the documents are not. Returns {machine,
    versions, results}, one row: {document_tokens, passage_tokens, prefill_tokens_per_s, encode_tokens_per_s, ratio,
    apart_tokens_per_s, apart_ratio}. `prefill` is one request a document, `encode` the service's own windows, out of
    which every passage is cut, `apart` a request a passage behind the warm context; ratios are to prefill's, medians
    of the turns'.
    """
    document_tokens = num_passages * passage_tokens
    with (
        Progress(console=console) as progress,
        BenchEngine(model, dtype=dtype, max_model_len=document_tokens + MARGIN) as engine,
    ):
        count = (num_documents + 1) * num_passages
        passages = bench_passages(engine.tokenizer, num_passages=count, passage_tokens=passage_tokens)
        engine.warm(passages[0])
        engine.encode(passages[1])
        context = EncodeContext(tuple(engine.encode_context), len(engine.prompts.preamble))
        starts = range(num_passages, count, num_passages)
        documents = [passages[start : start + num_passages] for start in starts]
        rates: dict[str, list[float]] = {"prefill": [], "encode": [], "apart": []}
        for pair in progress.track(
            [documents[i : i + 2] for i in range(0, len(documents), 2)], description="documents"
        ):
            turns: dict[str, list[Request]] = {
                "prefill": [([token for passage in document for token in passage], None) for document in pair],
                "encode": [request for document in pair for request in _windows(context, document)],
                "apart": [engine.encode_request(passage) for document in pair for passage in document],
            }
            for name, requests in turns.items():
                rates[name].append(len(pair) * document_tokens / _seconds(engine, requests))
        machine, versions = engine.machine, engine.versions
    row = {
        "document_tokens": document_tokens,
        "passage_tokens": passage_tokens,
        "prefill_tokens_per_s": statistics.median(rates["prefill"]),
        "encode_tokens_per_s": statistics.median(rates["encode"]),
        "ratio": _ratio(rates["encode"], rates["prefill"]),
        "apart_tokens_per_s": statistics.median(rates["apart"]),
        "apart_ratio": _ratio(rates["apart"], rates["prefill"]),
    }
    return {"machine": machine, "versions": versions, "model": Path(model).name, "results": [row]}


def _windows(context: EncodeContext, document: Sequence[Sequence[int]]) -> list[Request]:
    requests: list[Request] = []
    for run in document_windows(context, [tuple(passage) for passage in document]):
        spans = [[part.start, part.end] for part in run.parts]
        requests.append((run.prompt(run.parts[-1].end), {"encode": {"spans": spans}}))
    return requests


def _seconds(engine: BenchEngine, requests: Sequence[Request]) -> float:
    began = time.perf_counter()
    engine.generate_all(requests)
    return time.perf_counter() - began


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
