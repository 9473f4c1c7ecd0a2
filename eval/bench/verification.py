"""Whether what a benchmark times gives the right answer."""

from typing import Any

from kvblend.eval.bench.engine import BenchEngine
from kvblend.eval.quality.divergence import mean_kl

__all__ = ["TOLERANCES", "verify_blend"]

ANSWER_TOKENS = 16
TOLERANCES = {"float32": 1e-4, "float16": 1e-3, "bfloat16": 1e-2}
"""Largest KL between two ways to compute one answer, by the dtype whose rounding is all that they differ in."""


def verify_blend(engine: BenchEngine, passages: list[list[int]], question: list[int]) -> dict[str, Any]:
    """Compare a blend that recomputes everything with full prefill, over full prefill's own answer.

    Returns {recompute_ratio, answer_tokens, kl, tolerance}, KL in nats a token. Raises RuntimeError where it is more
    than the dtype's rounding: no speed is reported then.
    """
    prompt, order = engine.prompts.prompt(passages, question), engine.plan(passages, 1.0)
    answer, full = engine.answer_distributions(prompt, order=None, answer=None, num_tokens=ANSWER_TOKENS)
    _, blended = engine.answer_distributions(prompt, order=order, answer=answer, num_tokens=ANSWER_TOKENS)
    kl, tolerance = mean_kl(full, blended), TOLERANCES[engine.dtype]
    if not kl <= tolerance:
        raise RuntimeError(
            f"a blend at ratio 1 is not full prefill: KL {kl:.2g}, of which {engine.dtype} explains {tolerance:g}"
        )
    return {"recompute_ratio": 1.0, "answer_tokens": ANSWER_TOKENS, "kl": kl, "tolerance": tolerance}
