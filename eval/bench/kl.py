"""Divergence from full prefill through the connector, on a question set."""

import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from kvblend.eval.bench.engine import BenchEngine
from kvblend.eval.quality.divergence import mean_kl
from kvblend.eval.questions.question_set import SHORT_ANSWER, load_questions

__all__ = ["kl_bench"]

ANSWER_TOKENS = 16


def kl_bench(
    model: str,
    questions: Path,
    *,
    num_questions: int,
    num_passages: int,
    passage_tokens: int,
    ratios: list[float],
    dtype: str,
    console: Console,
) -> dict[str, Any]:
    """Mean KL over the first 16 answer tokens, by recompute ratio, of the first questions of a file.

    The file has MuSiQue's shape: a list of {question, ctxs: [{text}]}. Every passage is stored once, behind the
    preamble and a warm context: the first passage of the file's last question.
    Returns {machine, versions, results}, a row a ratio: {recompute_ratio, num_questions, kl, kl_stderr, agreement}.
    """
    examples = load_questions(questions)
    longest = num_passages * (passage_tokens + 8) + 512
    scores: dict[float, list[tuple[float, float]]] = {ratio: [] for ratio in ratios}
    with (
        Progress(console=console) as progress,
        BenchEngine(model, dtype=dtype, max_model_len=longest, instruction=SHORT_ANSWER) as engine,
    ):
        engine.warm(engine.prompts.passage(examples[-1].passages[0], passage_tokens))
        for example in progress.track(examples[:num_questions], description="questions"):
            passages = [engine.prompts.passage(text, passage_tokens) for text in example.passages[:num_passages]]
            for passage in passages:
                engine.encode(passage)
            prompt = engine.prompts.prompt(passages, engine.prompts.question(example.question))
            answer, reference = engine.answer_distributions(prompt, order=None, answer=None, num_tokens=ANSWER_TOKENS)
            for ratio in ratios:
                order = engine.plan(passages, ratio)
                _, ours = engine.answer_distributions(prompt, order=order, answer=answer, num_tokens=ANSWER_TOKENS)
                agreement = float((ours.argmax(-1) == reference.argmax(-1)).float().mean())
                scores[ratio].append((mean_kl(reference, ours), agreement))
        machine, versions = engine.machine, engine.versions
    results = [
        {
            "recompute_ratio": ratio,
            "num_questions": len(pairs),
            "kl": statistics.fmean(kl for kl, _ in pairs),
            "kl_stderr": statistics.stdev(kl for kl, _ in pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else None,
            "agreement": statistics.fmean(agreement for _, agreement in pairs),
        }
        for ratio, pairs in scores.items()
    ]
    return {"machine": machine, "versions": versions, "model": Path(model).name, "results": results}
