"""Decode gaps of a blended request beside those of the same request plain."""

import itertools
import statistics
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from kvblend.eval.bench.engine import BenchEngine
from kvblend.eval.bench.passages import bench_passages
from kvblend.eval.bench.ttft import QUESTION

__all__ = ["itl_bench"]

DECODED = 64


def itl_bench(model: str, *, context_tokens: int, pairs: int, dtype: str, console: Console) -> dict[str, Any]:
    """Median gap between tokens, blended and plain by turns, over 64 tokens forced to be the same.

    Returns {machine, versions, results}, one row: {context_tokens, plain_itl_ms, blended_itl_ms, ratio}, the ratio the
    median of the pairs'.
    """
    with (
        Progress(console=console) as progress,
        BenchEngine(model, dtype=dtype, max_model_len=context_tokens + 1024) as engine,
    ):
        passages = bench_passages(engine.tokenizer, num_passages=context_tokens // 500 + 1, passage_tokens=500)
        engine.warm(passages[0])
        for passage in passages[1:]:
            engine.encode(passage)
        prompt = engine.prompts.prompt(passages[1:], engine.prompts.question(QUESTION))
        order = engine.plan(passages[1:], 0.15)
        answer = list(engine.generate(prompt, max_tokens=DECODED).outputs[0].token_ids)
        plain, blended = [], []
        for _ in progress.track(range(pairs), description="pairs"):
            plain.append(_median_gap_ms(engine, prompt, None, answer))
            blended.append(_median_gap_ms(engine, prompt, order, answer))
        machine, versions = engine.machine, engine.versions
    row = {
        "context_tokens": context_tokens,
        "plain_itl_ms": statistics.median(plain),
        "blended_itl_ms": statistics.median(blended),
        "ratio": statistics.median(ours / theirs for ours, theirs in zip(blended, plain, strict=True)),
    }
    return {"machine": machine, "versions": versions, "model": Path(model).name, "results": [row]}


def _median_gap_ms(engine: BenchEngine, prompt: list[int], order: dict[str, Any] | None, answer: list[int]) -> float:
    engine.llm.reset_prefix_cache()
    core = engine.llm.llm_engine
    params = engine.sampling(order=order, answer=answer, max_tokens=len(answer))
    core.add_request(f"itl {time.monotonic_ns()}", {"prompt_token_ids": prompt}, params)
    times, count = [], 0
    while core.has_unfinished_requests():
        for output in core.step():
            if len(output.outputs[0].token_ids) > count:
                count = len(output.outputs[0].token_ids)
                times.append(time.perf_counter())
    return statistics.median(b - a for a, b in itertools.pairwise(times)) * 1e3
