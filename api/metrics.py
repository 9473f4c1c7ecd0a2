"""What the service counts for Prometheus."""

import math
from collections.abc import Callable, Collection
from statistics import fmean
from typing import Literal, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.registry import Collector

from kvblend.api.access.caller import asking_tenant
from kvblend.api.access.tenant_metrics import TTFT_BUCKETS_S, TenantMetrics
from kvblend.api.quality.answer_sample import Comparison
from kvblend.core.collection_name import DEFAULT_TENANT
from kvblend.core.report import BlendReport

__all__ = ["Metrics"]

KL_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


class Shunnable(Protocol):
    """A remote tier, or a vLLM server."""

    @property
    def is_shunned(self) -> bool: ...


class Metrics:
    """Counters of one service, in a registry of its own."""

    def __init__(self, tenants: Callable[[], Collection[str]] = lambda: [DEFAULT_TENANT]) -> None:
        """`tenants`: those that have a key."""
        self._registry = CollectorRegistry()
        self.tenants = TenantMetrics(self._registry, tenants)
        self._requests = Counter(
            "kvblend_requests",
            "Requests by route, method and status.",
            ["route", "method", "status"],
            registry=self._registry,
        )
        self._decisions = Counter(
            "kvblend_gate_decisions",
            "Prompts with passages, by what the gate decided: calibrated and uncalibrated were blended; unable, target "
            "and cost were prefilled.",
            ["decision"],
            registry=self._registry,
        )
        self._answers = Counter("kvblend_answers", "Answers by outcome.", ["outcome"], registry=self._registry)
        self._ttft = Histogram(
            "kvblend_ttft_seconds",
            "Time from the request's send to vLLM to its first token, by outcome.",
            ["outcome"],
            buckets=TTFT_BUCKETS_S,
            registry=self._registry,
        )
        self._tokens = Counter(
            "kvblend_context_tokens",
            "Context tokens of answers: exact, reused, selected, recomputed.",
            ["kind"],
            registry=self._registry,
        )
        self._reused = Counter(
            "kvblend_reused_tokens_by_tier",
            "Reused context tokens by the tier they came from.",
            ["tier"],
            registry=self._registry,
        )
        self._passages = Counter(
            "kvblend_context_passages",
            "Passages of blended contexts by the tier their KV came from; none: it was computed anew.",
            ["tier"],
            registry=self._registry,
        )
        self._standing = Counter(
            "kvblend_standing_tokens",
            "Passage tokens of prompts, by how their stored KV suits their place: exact, fits, reused, missing.",
            ["standing"],
            registry=self._registry,
        )
        self._variants = Counter(
            "kvblend_encoded_variants", "Variants that were encoded while engines idled.", registry=self._registry
        )
        self._steps = Counter(
            "kvblend_blend_seconds",
            "Time that blends took by step: load, probe, repair.",
            ["step"],
            registry=self._registry,
        )
        self._encoded = Counter("kvblend_encoded_passages", "Passages whose KV was computed.", registry=self._registry)
        self._encoded_tokens = Counter(
            "kvblend_encoded_tokens", "Passage tokens whose KV was computed.", registry=self._registry
        )
        self._jobs = Counter(
            "kvblend_ingest_jobs", "Ingest jobs by how they ended.", ["status"], registry=self._registry
        )
        self._guard_samples = Counter(
            "kvblend_guard_samples",
            "Answers that the live guard sampled, by how that ended: compared, abandoned, dropped, failed.",
            ["outcome"],
            registry=self._registry,
        )
        self._guard_kl = Histogram(
            "kvblend_guard_kl_nats",
            "KL of full prefill to the blend, mean over one answer's first tokens.",
            buckets=KL_BUCKETS,
            registry=self._registry,
        )
        self._guard_mean_kl = Gauge(
            "kvblend_guard_mean_kl_nats",
            "Mean KL of the answers compared last; not a number before the first.",
            registry=self._registry,
        )
        self._guard_mean_kl.set(math.nan)
        self._guard_agreement = Gauge(
            "kvblend_guard_agreement",
            "Share of places, of all and of the answers' first ones, in which the answers compared last have the token "
            "that full prefill holds likeliest.",
            ["of"],
            registry=self._registry,
        )
        self._guard_misses_target = Gauge(
            "kvblend_guard_misses_target",
            "1 where the answers that are held to targets of KL and agreement miss one.",
            registry=self._registry,
        )

        self._breakers = Gauge(
            "kvblend_breaker_open",
            "1 where a circuit breaker keeps requests from a remote tier or a vLLM server that failed again and again.",
            ["of"],
            registry=self._registry,
        )
        self._pending_deletions = Gauge(
            "kvblend_pending_deletions",
            "Passages whose KV is to be deleted, where nothing holds it any more, and is not yet gone from every tier.",
            registry=self._registry,
        )
        self._swept = Counter(
            "kvblend_swept_passages",
            "Passages whose KV a sweep found that no collection held.",
            registry=self._registry,
        )

    def breaker(self, of: str, asked: Shunnable) -> None:
        """Have whether it is shunned among these; it is asked when the text is."""
        self._breakers.labels(of).set_function(lambda: float(asked.is_shunned))

    def pending_deletions(self, count: Callable[[], int]) -> None:
        """Likewise how many passages' KV is to be deleted."""
        self._pending_deletions.set_function(lambda: float(count()))

    def swept(self, num_passages: int) -> None:
        """A sweep deleted the KV of so many passages."""
        self._swept.inc(num_passages)

    def request(self, *, route: str, method: str, status: int, tenant: str, code: str | None) -> None:
        """Count one answered HTTP request; `route` is the route's pattern, `code` its error's."""
        self.tenants.request(tenant, status=status, code=code)
        self._requests.labels(route, method, status).inc()

    def answer(self, report: BlendReport) -> None:
        """Count one finished answer of vLLM, for the tenant that asks."""
        self._answers.labels(report.outcome).inc()
        if report.ttft_ms is not None:
            self._ttft.labels(report.outcome).observe(report.ttft_ms / 1000)
        tokens = {
            "exact": report.exact_tokens,
            "reused": report.reused_tokens,
            "selected": report.selected_tokens,
            "recomputed": report.recomputed_tokens,
        }
        self.tenants.answer(asking_tenant(), report, tokens)
        for kind, num_tokens in tokens.items():
            self._tokens.labels(kind).inc(num_tokens)
        for tier, num_tokens in report.tiers.items():
            self._reused.labels(tier).inc(num_tokens)
        for passage in report.passages:
            self._passages.labels(passage.tier or "none").inc()
        for step, milliseconds in report.steps_ms.model_dump().items():
            self._steps.labels(step).inc(milliseconds / 1000)

    def decision(self, verdict: str) -> None:
        """Count one decision of the gate."""
        self._decisions.labels(verdict).inc()

    def encoded(self, num_tokens: int) -> None:
        """Count one passage whose KV was computed."""
        self._encoded.inc()
        self._encoded_tokens.inc(num_tokens)

    def standing(self, standing: str, num_tokens: int) -> None:
        """A passage was put into a prompt, where its KV stands in such a way."""
        self._standing.labels(standing).inc(num_tokens)

    def variants(self, count: int) -> None:
        """Variants were encoded."""
        self._variants.inc(count)

    def job(self, status: str) -> None:
        """Count one ended ingest job."""
        self._jobs.labels(status).inc()

    def guard_lost(self, outcome: Literal["abandoned", "dropped", "failed"]) -> None:
        """Count one sampled answer that was not compared."""
        self._guard_samples.labels(outcome).inc()

    def guard_compared(self, found: Comparison, *, last: Collection[Comparison], misses_target: bool) -> None:
        """Count one compared answer and keep what the `last` ones together say."""
        self._guard_samples.labels("compared").inc()
        self._guard_kl.observe(found.kl)
        self._guard_mean_kl.set(fmean(one.kl for one in last))
        self._guard_agreement.labels("tokens").set(fmean(one.agreement for one in last))
        self._guard_agreement.labels("first tokens").set(fmean(one.first_agrees for one in last))
        self._guard_misses_target.set(misses_target)

    def watch(self, collector: Collector) -> None:
        """Have somebody else's metrics among these."""
        self._registry.register(collector)

    def text(self) -> bytes:
        """All of it in Prometheus' text format. It may read files: call it in a thread."""
        self.tenants.forget_deleted()
        return generate_latest(self._registry)
