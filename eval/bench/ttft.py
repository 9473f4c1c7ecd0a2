"""Time to first token of every way to answer one prompt, and how near a blend's steps come to their floors."""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from kvblend.core.plan import REPORT
from kvblend.core.report import BlendReport
from kvblend.eval.bench.engine import BenchEngine
from kvblend.eval.bench.forward_clock import ForwardClock
from kvblend.eval.bench.memcpy import memcpy_ms
from kvblend.eval.bench.passages import bench_passages
from kvblend.eval.bench.ttft_row import BlendTiming, Timing, blend_fields, no_blend_fields, ttft_fields
from kvblend.eval.bench.verification import verify_blend

__all__ = ["QUESTION", "ttft_bench"]

PASSAGE_TOKENS = 500
RATIOS = (0.05, 0.15, 0.30)
QUESTION = "Which function reads a file line by line?"


@dataclass(frozen=True)
class Mode:
    """A way to answer; `order` is the blend's."""

    name: str
    recompute_ratio: float | None = None
    order: dict[str, Any] | None = None


def ttft_bench(model: str, context_tokens: list[int], *, dtype: str, repeats: int, console: Console) -> dict[str, Any]:
    """Full prefill, prefix cache, full reuse and blends take turns on the same prompts, the cache emptied before each.

    The prefix cache's mode is warmed with the same passages in reverse order. Before a length is timed, a blend that
    recomputes everything is held to full prefill's answer. Returns {machine, versions, model, verified, results}:
    `verified` is the verification with the largest KL; `results` has a row a context length and mode, of which those
    of blends have `steps_ms`, medians, and the ratios of `efficiency.TARGETS` with what they were made of. The
    question's forward is vLLM's own behind the same blended context, without sampling and scheduling.
    """
    counts = [max(1, round(tokens / PASSAGE_TOKENS)) for tokens in context_tokens]
    with (
        Progress(console=console) as progress,
        BenchEngine(model, dtype=dtype, max_model_len=max(context_tokens) + 1024) as engine,
    ):
        passages = bench_passages(engine.tokenizer, num_passages=max(counts) + 1, passage_tokens=PASSAGE_TOKENS)
        engine.warm(passages[0])
        for passage in progress.track(passages[1:], description="encode passages"):
            engine.encode(passage)
        (clock,) = engine.llm.apply_model(ForwardClock)
        question = engine.prompts.question(QUESTION)
        rows, verified = [], []
        for tokens, count in zip(context_tokens, counts, strict=True):
            chosen = passages[1 : count + 1]
            verified.append(verify_blend(engine, chosen, question))
            rows += _compare(engine, clock, tokens, chosen, question, repeats=repeats, progress=progress)
        return {
            "machine": engine.machine,
            "versions": engine.versions,
            "model": Path(model).name,
            "verified": max(verified, key=lambda one: one["kl"]),
            "results": rows,
        }


def _compare(
    engine: BenchEngine,
    clock: ForwardClock,
    context_tokens: int,
    passages: list[list[int]],
    question: list[int],
    *,
    repeats: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    prompt, reordered = (engine.prompts.prompt(order, question) for order in (passages, passages[::-1]))
    modes = [Mode("full_prefill"), Mode("prefix_cache"), Mode("full_reuse", 0.0, engine.plan(passages, 0.0))]
    modes += [Mode("blend", ratio, engine.plan(passages, ratio)) for ratio in RATIOS]
    timings: list[list[Timing]] = [[] for _ in modes]
    task = progress.add_task(f"{context_tokens} tokens", total=len(modes) * repeats)
    for _ in range(repeats):
        for mode, timed in zip(modes, timings, strict=True):
            engine.llm.reset_prefix_cache()
            if mode.name == "prefix_cache":
                engine.generate(reordered)
            timed.append(_time(engine, clock, prompt, mode.order, num_question=len(question)))
            progress.advance(task)
    prefill_token_ms = statistics.median(one.ttft_ms for one in timings[0]) / len(prompt)
    passage_bytes = engine.kv_token_bytes * sum(len(passage) for passage in passages)
    copy_ms = memcpy_ms(passage_bytes, engine.device)
    rows = []
    for mode, timed in zip(modes, timings, strict=True):
        blends = [one for one in timed if isinstance(one, BlendTiming)]
        rows.append(
            {
                "context_tokens": context_tokens,
                "prompt_tokens": len(prompt),
                "mode": mode.name,
                "recompute_ratio": mode.recompute_ratio,
                **ttft_fields(timed),
                **(
                    blend_fields(blends, prefill_token_ms=prefill_token_ms, memcpy_ms=copy_ms)
                    if blends
                    else no_blend_fields()
                ),
            }
        )
    return rows


def _time(
    engine: BenchEngine, clock: ForwardClock, prompt: list[int], order: dict[str, Any] | None, *, num_question: int
) -> Timing:
    began = time.perf_counter()
    output = engine.generate(prompt, order=order)
    ttft_ms = (time.perf_counter() - began) * 1e3
    if order is None:
        return Timing(ttft_ms)
    report = BlendReport.model_validate(output.kv_transfer_params[REPORT])
    if report.outcome != "blended" or report.missed_passages:
        raise RuntimeError(f"the blend was not made: {report}")
    return BlendTiming(ttft_ms, report, clock.last_ms(num_question))
