"""One mode's row of `bench ttft`: medians of its timings."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvblend.core.report import BlendReport
from kvblend.eval.bench.efficiency import TARGETS, Floor, step_efficiencies

__all__ = ["STEPS", "BlendTiming", "Timing", "blend_fields", "no_blend_fields", "ttft_fields"]

STEPS = ("load", "probe", "repair")


@dataclass(frozen=True)
class Timing:
    """Milliseconds to the first token of one request."""

    ttft_ms: float


@dataclass(frozen=True)
class BlendTiming(Timing):
    """A blended request's; `question_forward_ms` are those of the model's own forward over the question."""

    report: BlendReport
    question_forward_ms: float

    def steps_ms(self) -> dict[str, float]:
        """Those of the report, and as `question` what they leave of the time to first token."""
        steps = {name: getattr(self.report.steps_ms, name) for name in STEPS}
        return {**steps, "question": self.ttft_ms - sum(steps.values())}


def ttft_fields(timings: Sequence[Timing]) -> dict[str, float]:
    """Quantiles of the time to first token."""
    times = sorted(one.ttft_ms for one in timings)
    quintiles = statistics.quantiles(times, n=5, method="inclusive") if len(times) > 1 else times * 4
    return {"ttft_ms_p50": statistics.median(times), "ttft_ms_p20": quintiles[0], "ttft_ms_p80": quintiles[3]}


def blend_fields(timings: Sequence[BlendTiming], *, prefill_token_ms: float, memcpy_ms: float) -> dict[str, Any]:
    """What a blend's steps took, what they are held to, and the ratios.

    `prefill_token_ms` is full prefill's time a token; `memcpy_ms` that of a copy of the passage KV that was loaded.
    """
    report = timings[0].report  # its counts are those of every repeat
    each = [one.steps_ms() for one in timings]
    steps = {name: statistics.median(one[name] for one in each) for name in each[0]}
    forward_ms = statistics.median(one.question_forward_ms for one in timings)
    floor = Floor(prefill_token=prefill_token_ms, memcpy=memcpy_ms, question=forward_ms)
    return {
        "reused_tokens": report.reused_tokens,
        "recomputed_tokens": report.recomputed_tokens,
        "steps_ms": steps,
        "memcpy_ms": memcpy_ms,
        "question_forward_ms": forward_ms,
        **step_efficiencies(steps, floor, repaired_tokens=report.recomputed_tokens),
    }


def no_blend_fields() -> dict[str, None]:
    """The fields of `blend_fields` for a mode that blends nothing."""
    names = ("reused_tokens", "recomputed_tokens", "steps_ms", "memcpy_ms", "question_forward_ms", *TARGETS)
    return dict.fromkeys(names)
