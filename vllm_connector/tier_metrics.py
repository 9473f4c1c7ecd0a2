"""The tiers' counts as vLLM collects a connector's: from its processes to its log and its /metrics."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from prometheus_client import Counter
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

from kvblend.store.tier_counts import COUNTERS, OpCounts, TierOp

__all__ = ["TierPromMetrics", "TierStatsOfConnector"]


class TierStatsOfConnector(KVConnectorStats):  # type: ignore[misc]
    """`data`: by tier, by operation, the fields of `OpCounts`: what was counted since the last step."""

    @classmethod
    def of(cls, counts: Mapping[tuple[str, TierOp], OpCounts]) -> "TierStatsOfConnector":
        data: dict[str, dict[str, dict[str, float]]] = {}
        for (tier, op), own in counts.items():
            data.setdefault(tier, {})[op] = asdict(own)
        return cls(data=data)

    def reset(self) -> None:
        self.data.clear()

    def aggregate(self, other: KVConnectorStats) -> "TierStatsOfConnector":
        for tier, op, own in _each(other.data):
            mine = self.data.setdefault(tier, {}).setdefault(op, {})
            for name, value in own.items():
                mine[name] = mine.get(name, 0) + value
        return self

    def reduce(self) -> dict[str, int | float]:
        """What the log says of an interval: of every tier's lookups and fetches the share that hit, and bytes."""
        said: dict[str, int | float] = {}
        for tier, op, own in _each(self.data):
            if own["num_keys"]:
                said[f"{tier} {op} hit rate"] = round(own["num_hits"] / own["num_keys"], 3)
            said[f"{tier} {op} bytes"] = int(own["num_bytes"])
        return said

    def is_empty(self) -> bool:
        return not self.data


class TierPromMetrics(KVConnectorPromMetrics):  # type: ignore[misc]
    """Counters `vllm:kvblend_tier_...`, by tier and operation."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._counters = {
            field: self._counter_cls(
                name=f"vllm:kvblend_tier_{name}", documentation=text, labelnames=[*self._labelnames, "tier", "op"]
            )
            for field, (name, text) in COUNTERS.items()
        }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        for tier, op, own in _each(transfer_stats_data):
            for name, value in own.items():
                counter: Counter = self._counters[name]
                counter.labels(*self.per_engine_labelvalues[engine_idx], tier, op).inc(value)


def _each(data: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, float]]]:
    for tier, ops in data.items():
        for op, own in ops.items():
            yield tier, op, own
