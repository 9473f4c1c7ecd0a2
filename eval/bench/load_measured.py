"""What is measured of one row, and the row."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvblend.core.errors import KVBlendError
from kvblend.core.rest import Reuse
from kvblend.eval.bench.load_client import Answer
from kvblend.eval.bench.load_traffic import Traffic

__all__ = ["Measured", "hit_rate", "load_row", "percentile"]


@dataclass
class Measured:
    """Answers by their request's number, what failed, and bystanders' gaps. `name` says of what row."""

    name: str
    answers: dict[int, Answer] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    gaps_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0
    num_requests: int = 0
    num_in_flight: int = 0

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request while the block runs; where it raises, that is noted and goes no further."""
        self.num_requests += 1
        self.num_in_flight += 1
        try:
            with self.failures_noted("a request"):
                yield
        finally:
            self.num_in_flight -= 1

    @contextmanager
    def failures_noted(self, who: str) -> Iterator[None]:
        """Note what the block raises, and go on."""
        try:
            yield
        except Exception as error:  # whatever it is, the row counts it and the result names it
            self.failures.append(f"{self.name}: {who}: {type(error).__name__}: {error}")

    def require_answers(self) -> None:
        """Raise KVBlendError where no request was answered."""
        if not self.answers:
            raise KVBlendError(f"none of {self.num_requests} requests was answered; {self.failures[0]}")


def load_row(mode: Reuse, traffic: Traffic, measured: Measured, *, repeat: bool = False) -> dict[str, Any]:
    """The row of one mode and traffic; without bystanders, or where they had no time for a token, theirs are None."""
    answers = list(measured.answers.values())
    times = [answer.ttft_ms for answer in answers]
    return {
        "mode": mode,
        "repeat": repeat,
        "concurrency": traffic.concurrency,
        "rate": traffic.rate,
        "requests": measured.num_requests,
        "requests_per_s": len(answers) / measured.seconds,
        "ttft_ms_p50": percentile(times, 50),
        "ttft_ms_p95": percentile(times, 95),
        "e2e_ms_p50": percentile([answer.e2e_ms for answer in answers], 50),
        "bystander_itl_ms_p50": percentile(measured.gaps_ms, 50),
        "bystander_itl_ms_p99": percentile(measured.gaps_ms, 99),
        "errors": len(measured.failures),
        "hit_rate": hit_rate(answers),
        "prompt_tokens": percentile([answer.report.prompt_tokens for answer in answers], 50),
        "outcomes": dict(Counter(answer.report.outcome for answer in answers)),
    }


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Interpolated between neighbours; None where there are no values."""
    return float(np.percentile(values, percent)) if values else None


def hit_rate(answers: Sequence[Answer]) -> float | None:
    """Context tokens that were not computed for their request alone, from the store or vLLM's cache, over all."""
    num_context = sum(answer.report.context_tokens for answer in answers)
    num_hit = sum(answer.report.reused_tokens + answer.report.exact_tokens for answer in answers)
    return num_hit / num_context if num_context else None
