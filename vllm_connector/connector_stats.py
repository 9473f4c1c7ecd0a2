"""What the connector counts, as vLLM collects it: from its processes to its log and its /metrics."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Self

from prometheus_client import Counter, Gauge
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

from kvblend.store import TieredStore
from kvblend.store.tier_counts import COUNTERS

__all__ = ["ConnectorPromMetrics", "ConnectorStats"]


class ConnectorStats(KVConnectorStats):  # type: ignore[misc]
    """`data` has of `tiers`, by tier and operation, the fields of `OpCounts`, and of `passages` how many came from each
    tier: what was counted since the last step. Of `breakers`, by what they keep requests from and by process, whether
    they are open now.
    """

    @classmethod
    def of(cls, store: TieredStore, process: str, passages: Mapping[str, int] | None = None) -> Self | None:
        """None where nothing was counted: no breaker has opened or closed without a call."""
        counts = store.take_counts()
        if not counts and not passages:
            return None
        tiers: dict[str, dict[str, dict[str, float]]] = {}
        for (tier, op), own in counts.items():
            tiers.setdefault(tier, {})[op] = asdict(own)
        breakers = {str(remote): {process: int(remote.is_shunned)} for remote in store.remotes}
        return cls(data={"tiers": tiers, "passages": dict(passages or {}), "breakers": breakers})

    def reset(self) -> None:
        self.data.clear()

    def aggregate(self, other: KVConnectorStats) -> "ConnectorStats":
        """Add up what `other` counted; of a breaker it knows better."""
        for tier, op, own in _each(other.data.get("tiers", {})):
            _add(self.data.setdefault("tiers", {}).setdefault(tier, {}).setdefault(op, {}), own)
        _add(self.data.setdefault("passages", {}), other.data.get("passages", {}))
        for of, process, is_open in _each(other.data.get("breakers", {})):
            self.data.setdefault("breakers", {}).setdefault(of, {})[process] = is_open
        return self

    def reduce(self) -> dict[str, int | float]:
        """What the log says of an interval: of every tier's lookups and fetches the share that hit, and bytes; where
        passages came from; what is not asked."""
        said: dict[str, int | float] = {}
        for tier, op, own in _each(self.data.get("tiers", {})):
            if own["num_keys"]:
                said[f"{tier} {op} hit rate"] = round(own["num_hits"] / own["num_keys"], 3)
            said[f"{tier} {op} bytes"] = int(own["num_bytes"])
        said |= {f"{tier} passages": count for tier, count in self.data.get("passages", {}).items()}
        for of, processes in self.data.get("breakers", {}).items():
            if num_open := sum(processes.values()):
                said[f"{of} not asked"] = num_open
        return said

    def is_empty(self) -> bool:
        return not self.data


class ConnectorPromMetrics(KVConnectorPromMetrics):  # type: ignore[misc]
    """The metrics `vllm:kvblend_...`."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._tiers = {
            field: self._counter(f"tier_{name}", text, "tier", "op") for field, (name, text) in COUNTERS.items()
        }
        self._passages = self._counter(
            "context_passages",
            "Passages of contexts by the tier their KV came from; none: it was computed anew.",
            "tier",
        )
        self._breakers: Gauge = self._gauge_cls(
            name="vllm:kvblend_breaker_open",
            documentation="1 where a circuit breaker keeps a process of vLLM, its scheduler or a worker, from a remote "
            "tier that failed again and again; as of its last call.",
            labelnames=[*self._labelnames, "of", "process"],
            multiprocess_mode="mostrecent",
        )

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        labels = self.per_engine_labelvalues[engine_idx]
        for tier, op, own in _each(transfer_stats_data["tiers"]):
            for field, value in own.items():
                self._tiers[field].labels(*labels, tier, op).inc(value)
        for tier, count in transfer_stats_data["passages"].items():
            self._passages.labels(*labels, tier).inc(count)
        for of, process, is_open in _each(transfer_stats_data["breakers"]):
            self._breakers.labels(*labels, of, process).set(is_open)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        counter: Counter = self._counter_cls(
            name=f"vllm:kvblend_{name}", documentation=text, labelnames=[*self._labelnames, *labels]
        )
        return counter


def _each(data: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, Any]]:
    for outer, inner in data.items():
        for name, value in inner.items():
            yield outer, name, value


def _add(counts: dict[str, float], more: Mapping[str, float]) -> None:
    for name, value in more.items():
        counts[name] = counts.get(name, 0) + value
