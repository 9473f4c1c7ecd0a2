"""What the store's tiers hold, and what this service has asked of them, for Prometheus."""

import threading
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kvblend.core.rest import TierStats
from kvblend.store import TieredStore
from kvblend.store.tier_counts import COUNTERS, OpCounts, TierOp

__all__ = ["TierMetrics"]

GAUGES = {
    "used_bytes": "Bytes that a tier's files take, those being written among them.",
    "budget_bytes": "Bytes that a tier's files may take; 0 for a remote tier, which others bound.",
    "num_files": "Passage KV files in a tier.",
    "num_pinned": "Of these, those that are kept from eviction.",
}
EVICTIONS = {
    "num_evicted": ("evicted_files", "Files that made room for others, or moved to a slower tier."),
    "evicted_idle_s": ("evicted_idle_seconds", "Time since each evicted file had been used last, in all."),
}
"""By field of `TierStats`: the end of a counter's name, and what it says. All processes' that share the tier."""


class TierMetrics(Collector):
    """Read when they are asked for: call the registry in a thread. vLLM's servers count their own calls."""

    def __init__(self, store: TieredStore) -> None:
        self._store = store
        self._totals: dict[tuple[str, TierOp], OpCounts] = {}
        self._lock = threading.Lock()

    def describe(self) -> list[Metric]:
        """Nothing, so that a registry does not read the store when this is put into it."""
        return []

    def collect(self) -> Iterator[Metric]:
        stats = self._store.stats()
        for name, text in GAUGES.items():
            gauge = GaugeMetricFamily(f"kvblend_tier_{name.removeprefix('num_')}", text, labels=["tier"])
            for tier in stats:
                gauge.add_metric([tier.name], _value(tier, name))
            yield gauge
        for name, (suffix, text) in EVICTIONS.items():
            evictions = CounterMetricFamily(f"kvblend_tier_{suffix}", text, labels=["tier"])
            for tier in stats:
                evictions.add_metric([tier.name], _value(tier, name))
            yield evictions
        with self._lock:
            for key, own in self._store.take_counts().items():
                self._totals.setdefault(key, OpCounts()).add(own)
            totals = {key: OpCounts(**vars(own)) for key, own in sorted(self._totals.items())}
        for field, (name, text) in COUNTERS.items():
            counter = CounterMetricFamily(f"kvblend_tier_{name}", text, labels=["tier", "op"])
            for (tier_name, op), own in totals.items():
                counter.add_metric([tier_name, op], getattr(own, field))
            yield counter


def _value(tier: TierStats, name: str) -> float:
    return float(getattr(tier, name))
