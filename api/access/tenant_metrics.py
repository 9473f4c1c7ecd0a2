"""What the service counts of each tenant, for Prometheus: of those that have a key, and of nobody else."""

from collections.abc import Callable, Collection, Mapping
from threading import Lock
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase

from kvblend.core.report import BlendReport

__all__ = ["TTFT_BUCKETS_S", "TenantMetrics"]

TTFT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0)
Wrapped = TypeVar("Wrapped", bound=MetricWrapperBase)
NOBODY = ""
"""Whose requests those are that carry no valid key."""


class TenantMetrics:
    """Counters whose first label is a tenant; those of a tenant that has lost its last key go with it.

    So there are no more series than the operator has given keys to, however long the service runs.
    """

    def __init__(self, registry: CollectorRegistry, tenants: Callable[[], Collection[str]]) -> None:
        """`tenants`: those that have a key."""
        self._tenants = tenants
        self._lock = Lock()
        self._series: dict[str, set[tuple[MetricWrapperBase, tuple[str, ...]]]] = {}
        self._requests = Counter(
            "kvblend_tenant_requests",
            "Requests by tenant and status; the tenant is empty where there was no valid key.",
            ["tenant", "status"],
            registry=registry,
        )
        self._refused = Counter(
            "kvblend_tenant_refused",
            "Requests that were answered 429, by tenant and the error's code: which bound they met.",
            ["tenant", "code"],
            registry=registry,
        )
        self._answers = Counter(
            "kvblend_tenant_answers", "Answers by tenant and outcome.", ["tenant", "outcome"], registry=registry
        )
        self._ttft = Histogram(
            "kvblend_tenant_ttft_seconds",
            "Time from the request's send to vLLM to its first token, by tenant.",
            ["tenant"],
            buckets=TTFT_BUCKETS_S,
            registry=registry,
        )
        self._tokens = Counter(
            "kvblend_tenant_context_tokens",
            "Context tokens of a tenant's answers: exact, reused, selected, recomputed.",
            ["tenant", "kind"],
            registry=registry,
        )

    def request(self, tenant: str, *, status: int, code: str | None) -> None:
        """Count one answered HTTP request. `code`: of the error that it was answered with."""
        self._of(self._requests, tenant, str(status)).inc()
        if status == 429:
            self._of(self._refused, tenant, code or "none").inc()

    def answer(self, tenant: str, report: BlendReport, tokens: Mapping[str, int]) -> None:
        """Count one finished answer of vLLM. `tokens`: of its context, by kind."""
        self._of(self._answers, tenant, report.outcome).inc()
        if report.ttft_ms is not None:
            self._of(self._ttft, tenant).observe(report.ttft_ms / 1000)
        for kind, num_tokens in tokens.items():
            self._of(self._tokens, tenant, kind).inc(num_tokens)

    def forget_deleted(self) -> None:
        """Drop the series of tenants that have no key any more."""
        kept = {*self._tenants(), NOBODY}
        with self._lock:
            for tenant in self._series.keys() - kept:
                for metric, labels in self._series.pop(tenant):
                    metric.remove(*labels)

    def _of(self, metric: Wrapped, *labels: str) -> Wrapped:
        """A metric's series; the first of the labels is the tenant."""
        with self._lock:
            self._series.setdefault(labels[0], set()).add((metric, labels))
            return metric.labels(*labels)
