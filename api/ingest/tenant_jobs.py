"""How many ingest jobs each tenant has under way, for Prometheus."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kvblend.api.ingest.jobs import Job
from kvblend.core.collection_name import tenant_of

__all__ = ["TenantJobs"]


class TenantJobs(Collector):
    """Of tenants that have a key, or had one when a job began that has not ended."""

    def __init__(self, unfinished: Callable[[], Collection[Job]], tenants: Callable[[], Collection[str]]) -> None:
        self._unfinished, self._tenants = unfinished, tenants

    def describe(self) -> list[Metric]:
        """Nothing, so that a registry does not ask for jobs when this is put into it."""
        return []

    def collect(self) -> Iterator[Metric]:
        found = Counter({(tenant, status): 0 for tenant in self._tenants() for status in ("queued", "running")})
        found.update((tenant_of(job.state.collection), job.state.status) for job in self._unfinished())
        gauge = GaugeMetricFamily(
            "kvblend_tenant_jobs", "Ingest jobs of a tenant that are queued or running.", labels=["tenant", "status"]
        )
        for labels, count in found.items():
            gauge.add_metric(labels, count)
        yield gauge
