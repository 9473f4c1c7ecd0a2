"""Time to first token of every way to answer one prompt."""

import statistics
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from kvblend.cli.bench.divergence import mean_kl
from kvblend.cli.bench.engine import BenchEngine
from kvblend.cli.bench.passages import bench_passages

__all__ = ["PREAMBLE", "QUESTION", "ttft_bench"]

PASSAGE_TOKENS = 500
ANSWER_TOKENS = 16
RATIOS = (0.05, 0.15, 0.30)
PREAMBLE = "<|im_start|>system\nAnswer the question using the passages.<|im_end|>\n<|im_start|>user\nPassages:\n"
QUESTION = "Question: Which function reads a file line by line?<|im_end|>\n<|im_start|>assistant\n"

Timing = tuple[float, dict[str, float] | None]
"""Milliseconds to the first token; those of a blend's steps."""


def ttft_bench(model: str, context_tokens: list[int], *, dtype: str, repeats: int, console: Console) -> dict[str, Any]:
    """Full prefill, prefix cache, full reuse and blends take turns on the same prompts, the cache emptied before each.

    The prefix cache's mode is warmed with the same passages in reverse order. Returns {machine, versions, results}, one
    row of `results` a context length and mode.
    """
    counts = [max(1, round(tokens / PASSAGE_TOKENS)) for tokens in context_tokens]
    with (
        Progress(console=console) as progress,
        BenchEngine(model, dtype=dtype, max_model_len=max(context_tokens) + 1024, preamble=PREAMBLE) as engine,
    ):
        passages = bench_passages(engine.tokenizer, num_passages=max(counts) + 1, passage_tokens=PASSAGE_TOKENS)
        engine.warm(passages[0])
        for passage in progress.track(passages[1:], description="encode passages"):
            engine.encode(passage)
        rows = []
        for tokens, count in zip(context_tokens, counts, strict=True):
            rows += _compare(engine, tokens, passages[1 : count + 1], repeats, progress)
        return {"machine": engine.machine, "versions": engine.versions, "model": Path(model).name, "results": rows}


def _compare(
    engine: BenchEngine, context_tokens: int, passages: list[list[int]], repeats: int, progress: Progress
) -> list[dict[str, Any]]:
    question = engine.ids(QUESTION)
    prompt, reordered = engine.prompt(passages, question), engine.prompt(passages[::-1], question)
    modes: list[tuple[str, float | None, dict[str, Any] | None]] = [("full_prefill", None, None)]
    modes += [("prefix_cache", None, None), ("full_reuse", 0.0, engine.plan(passages, 0.0))]
    modes += [("blend", ratio, engine.plan(passages, ratio)) for ratio in RATIOS]
    timings: list[list[Timing]] = [[] for _ in modes]
    task = progress.add_task(f"{context_tokens} tokens", total=len(modes) * (repeats + 1))
    for _ in range(repeats):
        for (mode, _ratio, order), timing in zip(modes, timings, strict=True):
            engine.llm.reset_prefix_cache()
            if mode == "prefix_cache":
                engine.generate(reordered)
            timing.append(_time(engine, prompt, order))
            progress.advance(task)
    answer, reference = engine.answer_distributions(prompt, order=None, answer=None, num_tokens=ANSWER_TOKENS)
    rows = []
    for (mode, ratio, order), timing in zip(modes, timings, strict=True):
        kl = None
        if order is not None:
            _, ours = engine.answer_distributions(prompt, order=order, answer=answer, num_tokens=ANSWER_TOKENS)
            kl = mean_kl(reference, ours)
        rows.append(_row(context_tokens, mode, ratio, timing, kl))
        progress.advance(task)
    return rows


def _time(engine: BenchEngine, prompt: list[int], order: dict[str, Any] | None) -> Timing:
    began = time.perf_counter()
    output = engine.generate(prompt, order=order)
    ttft_ms = (time.perf_counter() - began) * 1e3
    if order is None:
        return ttft_ms, None
    report = output.kv_transfer_params["kvblend"]
    if report["outcome"] != "blended" or report["missed_passages"]:
        raise RuntimeError(f"the blend was not made: {report}")
    steps: dict[str, float] = report["steps_ms"]
    return ttft_ms, {**steps, "question": ttft_ms - sum(steps.values())}


def _row(
    context_tokens: int, mode: str, ratio: float | None, timings: list[Timing], kl: float | None
) -> dict[str, Any]:
    times = sorted(ttft for ttft, _ in timings)
    quintiles = statistics.quantiles(times, n=5, method="inclusive") if len(times) > 1 else times * 4
    steps = [step for _, step in timings if step is not None]
    return {
        "context_tokens": context_tokens,
        "mode": mode,
        "recompute_ratio": ratio,
        "ttft_ms_p50": statistics.median(times),
        "ttft_ms_p20": quintiles[0],
        "ttft_ms_p80": quintiles[3],
        "kl": kl,
        "steps_ms": {name: statistics.median(step[name] for step in steps) for name in steps[0]} if steps else None,
    }
