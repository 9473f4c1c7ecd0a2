"""What each tenant has in the store, for Prometheus."""

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kvblend.api.kv.owners import KVOwners
from kvblend.store import TieredStore

__all__ = ["TenantKV"]


class TenantKV(Collector):
    """Read when it is asked for: call the registry in a thread."""

    def __init__(self, store: TieredStore, owners: KVOwners) -> None:
        self._store, self._owners = store, owners

    def describe(self) -> list[Metric]:
        """Nothing, so that a registry does not read the store when this is put into it."""
        return []

    def collect(self) -> Iterator[Metric]:
        gauge = GaugeMetricFamily("kvblend_tenant_kv_bytes", "KV of a tenant in a tier.", labels=["tenant", "tier"])
        for tier in self._store.bounded:
            found = Counter[str]()
            for owner, num_bytes in tier.owned_bytes().items():
                if (tenant := self._owners.tenant(owner)) is not None:
                    found[tenant] += num_bytes
            for tenant, num_bytes in found.items():
                gauge.add_metric([tenant, tier.name], num_bytes)
        yield gauge
