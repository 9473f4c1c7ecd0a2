"""Hit rates of eviction policies on request traces, at shares of their working sets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvblend.eval.bench.eviction_bound import hits_with_foresight
from kvblend.eval.bench.eviction_replay import Hits, ReplayedTier, passage_bytes
from kvblend.eval.trace import Trace, read_trace, zipf_trace
from kvblend.store.eviction import POLICY_NAMES, policy_of

__all__ = ["eviction_rows"]

CAPACITIES = (0.05, 0.10, 0.25)
"""Shares of the working set, in bytes."""


def eviction_rows(trace: Path | None = None) -> list[dict[str, Any]]:
    """A row for each trace (our own, and that of a file), capacity and policy; the last policy has foresight.

    `hit_rate` counts passages and `byte_hit_rate` bytes, over the whole trace from an empty tier;
    `steady_hit_rate` and `steady_byte_hit_rate` over its second half alone; `ingest_hit_rate` over that too, where an
    ingest went before that wrote as many bytes as the tier has, of passages that nobody asks for.
    Raises InvalidRequestError where the file cannot be read.
    """
    traces = [zipf_trace()] if trace is None else [read_trace(trace), zipf_trace()]
    return [row for each in traces for capacity in CAPACITIES for row in _rows(each, capacity)]


def _rows(trace: Trace, capacity: float) -> list[dict[str, Any]]:
    num_bytes = passage_bytes(trace)
    budget_bytes = round(capacity * sum(num_bytes.values()))
    middle = len(trace.requests) // 2
    first, second = _passages(trace.requests[:middle]), _passages(trace.requests[middle:])
    rows: list[dict[str, Any]] = []
    for name in POLICY_NAMES:
        tier, ingested = (ReplayedTier(policy_of(name), budget_bytes) for _ in range(2))
        halves = tier.ask(first, num_bytes), tier.ask(second, num_bytes)
        ingested.ask(first, num_bytes)
        _ingest(ingested, num_bytes, budget_bytes)
        ingest_hit_rate = ingested.ask(second, num_bytes).hit_rate
        rows.append({"policy": name, **_rates(*halves), "ingest_hit_rate": ingest_hit_rate})
    found = hits_with_foresight(first + second, num_bytes, budget_bytes)
    halves = sum(found[: len(first)], Hits()), sum(found[len(first) :], Hits())
    rows.append({"policy": "foresight", **_rates(*halves), "ingest_hit_rate": None})
    return [{"trace": trace.name, "capacity": capacity, **row} for row in rows]


def _passages(requests: Sequence[tuple[int, ...]]) -> list[int]:
    return [passage for request in requests for passage in request]


def _ingest(tier: ReplayedTier, num_bytes: dict[int, int], total_bytes: int) -> None:
    """Put other passages than those of `num_bytes`, but of their sizes, until they have `total_bytes`."""
    for passage, size in num_bytes.items():
        if total_bytes <= 0:
            return
        tier.put(-1 - passage, size)
        total_bytes -= size


def _rates(first: Hits, second: Hits) -> dict[str, float]:
    whole = first + second
    return {
        "hit_rate": whole.hit_rate,
        "byte_hit_rate": whole.byte_hit_rate,
        "steady_hit_rate": second.hit_rate,
        "steady_byte_hit_rate": second.byte_hit_rate,
    }
