"""How fast passages are encoded and stored, beside vLLM's own prefill of the same passages."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from kvblend.cli.bench.engine import BenchEngine
from kvblend.cli.bench.passages import bench_passages

__all__ = ["ingest_bench"]

BATCH = 4


def ingest_bench(
    model: str, *, num_passages: int, passage_tokens: int, dtype: str | None, console: Console
) -> dict[str, Any]:
    """Passage tokens a second, KV stored, and of a plain prefill, by turns on the same passages, four in flight.

    The encode context is in vLLM's prefix cache, as it is while an ingest runs; the passages are not. Returns {machine,
    versions, results}, one row: {passage_tokens, prefill_tokens_per_s, encode_tokens_per_s, ratio,
    preamble_tokens_per_s, warm_ratio}. `encode` is behind preamble and warm context, `preamble` behind the preamble
    alone; `ratio` is encode's to prefill's, `warm_ratio` encode's to preamble's, medians of the turns'.
    """
    with (
        Progress(console=console) as progress,
        BenchEngine(model, dtype=dtype, max_model_len=passage_tokens + 1024) as engine,
    ):
        passages = bench_passages(engine.tokenizer, num_passages=num_passages + 2, passage_tokens=passage_tokens)
        engine.warm(passages[0])
        engine.encode(passages[1])
        prefills, encodes, preambles = [], [], []
        batches = [passages[2:][start : start + BATCH] for start in range(0, num_passages, BATCH)]
        for batch in progress.track(batches, description="passages"):
            tokens = sum(len(passage) for passage in batch)
            prefills.append(tokens / _seconds(engine, [(passage, None) for passage in batch]))
            encodes.append(tokens / _seconds(engine, [engine.encode_request(passage) for passage in batch]))
            behind_preamble = [engine.encode_request(passage, warm=False) for passage in batch]
            preambles.append(tokens / _seconds(engine, behind_preamble))
        machine, versions = engine.machine, engine.versions
    row = {
        "passage_tokens": passage_tokens,
        "prefill_tokens_per_s": statistics.median(prefills),
        "encode_tokens_per_s": statistics.median(encodes),
        "ratio": _ratio(encodes, prefills),
        "preamble_tokens_per_s": statistics.median(preambles),
        "warm_ratio": _ratio(encodes, preambles),
    }
    return {"machine": machine, "versions": versions, "model": Path(model).name, "results": [row]}


def _seconds(engine: BenchEngine, requests: Sequence[tuple[list[int], dict[str, Any] | None]]) -> float:
    began = time.perf_counter()
    engine.generate_all(requests)
    return time.perf_counter() - began


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
