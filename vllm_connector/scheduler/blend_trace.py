"""Spans of blends, in the traces of vLLM's requests and sent where vLLM sends its own (`--otlp-traces-endpoint`)."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from vllm.logger import init_logger
from vllm.tracing import extract_trace_context

from kvblend.core.report import BlendReport
from kvblend.vllm_connector.timed_step import TimedStep

__all__ = ["send_trace", "trace_id"]

logger = init_logger("vllm.kvblend.trace")

COUNTS = (
    "prompt_tokens",
    "context_tokens",
    "exact_tokens",
    "reused_tokens",
    "selected_tokens",
    "recomputed_tokens",
    "missed_passages",
)


def trace_id(trace_headers: Mapping[str, str] | None) -> str | None:
    """Of a request's trace; None where it has none, or vLLM sends no spans."""
    parts = (trace_headers or {}).get("traceparent", "").split("-")
    return parts[1] if len(parts) == 4 else None


def send_trace(
    trace_headers: Mapping[str, str], report: BlendReport, steps: Sequence[TimedStep], *, arrived_ns: int
) -> None:
    """Make the span of a request's blend, from its arrival until now, and those of its steps within it.

    A thread of OpenTelemetry's sends them. Raises nothing: a blend does not fail with its trace.
    """
    try:
        _send(trace_headers, report, steps, arrived_ns)
    except Exception:
        logger.exception("The spans of a blend are lost")


def _send(trace_headers: Mapping[str, str], report: BlendReport, steps: Sequence[TimedStep], arrived_ns: int) -> None:
    from opentelemetry import trace

    tracer = trace.get_tracer("kvblend")
    whole = tracer.start_span(
        "kvblend.blend",
        extract_trace_context(trace_headers),
        start_time=arrived_ns,
        attributes=_attributes(report),
    )
    contexts: dict[str | None, Any] = {None: trace.set_span_in_context(whole)}
    for step in sorted(steps, key=lambda step: step.within is not None):  # what holds others comes first
        facts = {f"kvblend.{name}": value for name, value in step.facts.items()}
        span = tracer.start_span(
            f"kvblend.{step.name}",
            contexts.get(step.within, contexts[None]),
            start_time=step.began_ns,
            attributes={"kvblend.spent_ms": step.spent_ms, "kvblend.parts": step.num_parts, **facts},
        )
        contexts[step.name] = trace.set_span_in_context(span)
        span.end(step.ended_ns)
    whole.end(time.time_ns())


def _attributes(report: BlendReport) -> dict[str, Any]:
    counts: dict[str, Any] = {name: getattr(report, name) for name in COUNTS}
    tiers = {f"tier.{tier}.tokens": count for tier, count in report.tiers.items()}
    said = {"outcome": report.outcome, "reason": report.reason, "recompute_ratio": report.recompute_ratio}
    known = {**counts, **tiers, **said, "selector": report.selector}
    return {f"kvblend.{name}": value for name, value in known.items() if value is not None}
