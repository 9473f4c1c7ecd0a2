"""Makes deploy/grafana/kvblend.json and engines.json: `make dashboards`.

kvblend.json draws what the service exports, engines.json what the connector does in vLLM's own /metrics. Each panel's
description ends with the metrics that it draws.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["DASHBOARDS", "Panel", "dashboard"]

FOLDER = Path(__file__).resolve().parent
METRIC = re.compile(r"\b(?:kvblend|vllm):?[a-z_:]+")
WIDTH, HEIGHT, COLUMNS = 12, 8, 24


@dataclass(frozen=True)
class Panel:
    """One graph. `queries`: PromQL by legend; SELECT in it stands for the dashboard's variables."""

    title: str
    says: str
    unit: str
    queries: Sequence[tuple[str, str]]

    def as_json(self, number: int, select: str) -> dict[str, Any]:
        exprs = [expr.replace("SELECT", select) for expr, _ in self.queries]
        metrics = list(dict.fromkeys(name for expr in exprs for name in METRIC.findall(expr)))
        return {
            "id": number + 1,
            "title": self.title,
            "description": f"{self.says} Metric: {', '.join(metrics)}",
            "type": "timeseries",
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "gridPos": {
                "x": number * WIDTH % COLUMNS,
                "y": number * WIDTH // COLUMNS * HEIGHT,
                "w": WIDTH,
                "h": HEIGHT,
            },
            "fieldConfig": {"defaults": {"unit": self.unit, "min": 0}, "overrides": []},
            "targets": [
                {"refId": chr(ord("A") + place), "expr": expr, "legendFormat": legend}
                for place, (expr, (_, legend)) in enumerate(zip(exprs, self.queries, strict=True))
            ],
        }


def _rate(metric: str, *by: str, more: str = "") -> str:
    return f"sum by ({', '.join(by)}) (rate({metric}{{SELECT{more}}}[$__rate_interval]))"


def _ratio(over: str, under: str, *by: str) -> str:
    return f"{_rate(over, *by)} / {_rate(under, *by)}"


def _tokens(compares: str, kind: str) -> str:
    return _rate("kvblend_context_tokens_total", "instance", more=f', kind{compares}"{kind}"')


def _quantiles(metric: str, by: str) -> list[tuple[str, str]]:
    return [
        (f"histogram_quantile({share}, {_rate(f'{metric}_bucket', 'le', by)})", f"p{100 * share:.0f} {{{{{by}}}}}")
        for share in (0.5, 0.95)
    ]


SERVICE = [
    Panel(
        "Time to first token",
        "From the request's send to vLLM, by outcome.",
        "s",
        _quantiles("kvblend_ttft_seconds", "outcome"),
    ),
    Panel(
        "Answers a second",
        "Blended, by vLLM's prefix cache, or prefilled.",
        "reqps",
        [(_rate("kvblend_answers_total", "outcome"), "{{outcome}}")],
    ),
    Panel(
        "Context tokens a second",
        "Taken as they are, reused, of these selected, computed.",
        "short",
        [(_rate("kvblend_context_tokens_total", "kind"), "{{kind}}")],
    ),
    Panel(
        "Reused share of the context",
        "Reused tokens over all; what the alert on reuse watches.",
        "percentunit",
        [
            (
                f"{_tokens('=', 'reused')} / ({_tokens('!=', 'selected')} - {_tokens('=', 'selected')})",
                "{{instance}}",
            )
        ],
    ),
    Panel(
        "Reused tokens a second, by tier",
        "Where their KV came from.",
        "short",
        [(_rate("kvblend_reused_tokens_by_tier_total", "tier"), "{{tier}}")],
    ),
    Panel(
        "Passages a second, by tier",
        "none: computed anew.",
        "short",
        [(_rate("kvblend_context_passages_total", "tier"), "{{tier}}")],
    ),
    Panel(
        "Passage tokens, by how their KV suits their place",
        "exact and fits need less repair than reused.",
        "short",
        [(_rate("kvblend_standing_tokens_total", "standing"), "{{standing}}")],
    ),
    Panel(
        "What blends spend time on",
        "Seconds a second, by step.",
        "s",
        [(_rate("kvblend_blend_seconds_total", "step"), "{{step}}")],
    ),
    Panel(
        "What the gate decided",
        "calibrated and uncalibrated were blended; unable, target and cost prefilled.",
        "reqps",
        [(_rate("kvblend_gate_decisions_total", "decision"), "{{decision}}")],
    ),
    Panel(
        "The live guard: KL to full prefill",
        "Mean of the answers compared last, and of all by quantile; in nats.",
        "short",
        [
            ("kvblend_guard_mean_kl_nats{SELECT}", "mean {{instance}}"),
            *_quantiles("kvblend_guard_kl_nats", "instance"),
            ("kvblend_guard_misses_target{SELECT}", "misses its target {{instance}}"),
        ],
    ),
    Panel(
        "The live guard: agreement",
        "Share of places with the token that full prefill holds likeliest.",
        "percentunit",
        [("kvblend_guard_agreement{SELECT}", "{{of}} {{instance}}")],
    ),
    Panel(
        "The live guard: samples a second",
        "compared, or why not.",
        "short",
        [(_rate("kvblend_guard_samples_total", "outcome"), "{{outcome}}")],
    ),
    Panel(
        "Bytes in each tier",
        "As the service sees them: what lies there, and what may.",
        "bytes",
        [
            ("kvblend_tier_used_bytes{SELECT}", "{{tier}}"),
            ("kvblend_tier_budget_bytes{SELECT} > 0", "budget of {{tier}}"),
        ],
    ),
    Panel(
        "Files in each tier",
        "Of passage KV, and of these the pinned ones.",
        "short",
        [("kvblend_tier_files{SELECT}", "{{tier}}"), ("kvblend_tier_pinned{SELECT}", "pinned in {{tier}}")],
    ),
    Panel(
        "Idle time of evicted files",
        "How long before each had been used last, in the mean: what is evicted soon after a use is wanted again.",
        "s",
        [(_ratio("kvblend_tier_evicted_idle_seconds_total", "kvblend_tier_evicted_files_total", "tier"), "{{tier}}")],
    ),
    Panel(
        "Hits of the service's calls",
        "Of the files asked for, or given.",
        "percentunit",
        [
            (
                _ratio("kvblend_tier_hits_total", "kvblend_tier_keys_total", "tier", "op"),
                "{{tier}} {{op}}",
            )
        ],
    ),
    Panel(
        "Seconds a call of a tier",
        "Of the service; vLLM's are its own.",
        "s",
        [
            (
                _ratio("kvblend_tier_seconds_total", "kvblend_tier_calls_total", "tier", "op"),
                "{{tier}} {{op}}",
            )
        ],
    ),
    Panel(
        "Bytes a second of a tier",
        "Opened or written by the service.",
        "Bps",
        [(_rate("kvblend_tier_bytes_total", "tier", "op"), "{{tier}} {{op}}")],
    ),
    Panel(
        "Failures",
        "Calls of tiers that failed or were late, and what is not asked since it failed again and again.",
        "short",
        [
            (_rate("kvblend_tier_failures_total", "tier", "op"), "{{tier}} {{op}}"),
            ("kvblend_breaker_open{SELECT}", "not asked: {{of}}"),
        ],
    ),
    Panel(
        "Passages encoded a second",
        "At ingest, after a miss, or as variants while engines idle.",
        "short",
        [
            (_rate("kvblend_encoded_passages_total", "instance"), "passages {{instance}}"),
            (_rate("kvblend_encoded_tokens_total", "instance"), "tokens {{instance}}"),
            (_rate("kvblend_encoded_variants_total", "instance"), "variants {{instance}}"),
        ],
    ),
    Panel(
        "Ingest jobs that ended, a second",
        "By how.",
        "short",
        [(_rate("kvblend_ingest_jobs_total", "status"), "{{status}}")],
    ),
    Panel(
        "KV that is to go",
        "Deleted passages whose KV is not gone from every tier, and what sweeps found.",
        "short",
        [
            ("kvblend_pending_deletions{SELECT}", "to be deleted {{instance}}"),
            (_rate("kvblend_swept_passages_total", "instance"), "swept a second {{instance}}"),
        ],
    ),
    Panel("HTTP requests a second", "By status.", "reqps", [(_rate("kvblend_requests_total", "status"), "{{status}}")]),
    Panel(
        "Requests a second, by tenant",
        "Of all, and of these the refused.",
        "reqps",
        [
            (_rate("kvblend_tenant_requests_total", "tenant"), "{{tenant}}"),
            (_rate("kvblend_tenant_requests_total", "tenant", more=', status=~"4.."'), "refused {{tenant}}"),
        ],
    ),
    Panel(
        "Requests a second that were too much, by tenant",
        "Answered 429, by the bound that they met.",
        "reqps",
        [(_rate("kvblend_tenant_refused_total", "tenant", "code"), "{{tenant}} {{code}}")],
    ),
    Panel(
        "Time to first token, by tenant",
        "From the request's send to vLLM.",
        "s",
        _quantiles("kvblend_tenant_ttft_seconds", "tenant"),
    ),
    Panel(
        "Answers a second, by tenant",
        "Of all, and of these the blended.",
        "reqps",
        [
            (_rate("kvblend_tenant_answers_total", "tenant"), "{{tenant}}"),
            (_rate("kvblend_tenant_answers_total", "tenant", more=', outcome="blended"'), "blended {{tenant}}"),
        ],
    ),
    Panel(
        "Context tokens a second, by tenant",
        "Taken as they are, reused, of these selected, computed.",
        "short",
        [(_rate("kvblend_tenant_context_tokens_total", "tenant", "kind"), "{{tenant}} {{kind}}")],
    ),
    Panel(
        "Ingest jobs under way, by tenant",
        "Queued and running.",
        "short",
        [("kvblend_tenant_jobs{SELECT}", "{{tenant}} {{status}}")],
    ),
    Panel(
        "KV by tenant",
        "Of its collections, in each tier.",
        "bytes",
        [("kvblend_tenant_kv_bytes{SELECT}", "{{tenant}} {{tier}}")],
    ),
]

ENGINES = [
    Panel(
        "Requests in vLLM",
        "Running and waiting.",
        "short",
        [
            ("sum by (instance) (vllm:num_requests_running{SELECT})", "running {{instance}}"),
            ("sum by (instance) (vllm:num_requests_waiting{SELECT})", "waiting {{instance}}"),
        ],
    ),
    Panel(
        "KV cache in use",
        "Share of vLLM's blocks.",
        "percentunit",
        [("vllm:kv_cache_usage_perc{SELECT}", "{{instance}}")],
    ),
    Panel(
        "Prompt tokens from the connector",
        "Of those that it was asked for.",
        "percentunit",
        [
            (
                _ratio("vllm:external_prefix_cache_hits_total", "vllm:external_prefix_cache_queries_total", "instance"),
                "{{instance}}",
            )
        ],
    ),
    Panel(
        "Time to first token in vLLM",
        "Of all its requests.",
        "s",
        _quantiles("vllm:time_to_first_token_seconds", "instance"),
    ),
    Panel(
        "Hits of the connector's calls",
        "Of the files asked for, or given, by tier.",
        "percentunit",
        [
            (
                _ratio("vllm:kvblend_tier_hits_total", "vllm:kvblend_tier_keys_total", "tier", "op"),
                "{{tier}} {{op}}",
            )
        ],
    ),
    Panel(
        "Seconds a call of a tier",
        "Of the connector.",
        "s",
        [
            (
                _ratio("vllm:kvblend_tier_seconds_total", "vllm:kvblend_tier_calls_total", "tier", "op"),
                "{{tier}} {{op}}",
            )
        ],
    ),
    Panel(
        "Bytes a second of a tier",
        "Opened or written by the connector.",
        "Bps",
        [(_rate("vllm:kvblend_tier_bytes_total", "tier", "op"), "{{tier}} {{op}}")],
    ),
    Panel(
        "Passages a second, by tier, in vLLM",
        "none: computed anew. With files read of a tier this is what the alert on unused tiers watches.",
        "short",
        [(_rate("vllm:kvblend_context_passages_total", "tier"), "{{tier}}")],
    ),
    Panel(
        "Failures of tiers",
        "Calls a second that failed or were late, and processes that do not ask what failed again and again.",
        "short",
        [
            (_rate("vllm:kvblend_tier_failures_total", "tier", "op"), "{{tier}} {{op}}"),
            ("sum by (of, instance) (vllm:kvblend_breaker_open{SELECT})", "not asked: {{of}} {{instance}}"),
        ],
    ),
]

DASHBOARDS = {
    "kvblend.json": ("kvblend", "kvblend", SERVICE, "kvblend_requests_total", ("instance",)),
    "engines.json": (
        "kvblend-engines",
        "kvblend: vLLM",
        ENGINES,
        "vllm:num_requests_running",
        ("model_name", "instance"),
    ),
}
"""By file: uid, title, panels, the metric whose labels the variables are, and these."""


def dashboard(name: str) -> str:
    """The JSON of one file."""
    uid, title, panels, metric, labels = DASHBOARDS[name]
    select = ", ".join(f'{label}=~"${label}"' for label in labels)
    variables: list[dict[str, Any]] = [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    ]
    for label in labels:
        query = f"label_values({metric}, {label})"
        variables.append(
            {
                "name": label,
                "type": "query",
                "datasource": {"type": "prometheus", "uid": "${datasource}"},
                "definition": query,
                "query": {"query": query, "refId": "StandardVariableQuery"},
                "refresh": 2,
                "multi": True,
                "includeAll": True,
                "allValue": ".*",
                "current": {"text": ["All"], "value": ["$__all"]},
            }
        )
    return (
        json.dumps(
            {
                "uid": uid,
                "title": title,
                "schemaVersion": 41,
                "refresh": "30s",
                "time": {"from": "now-1h", "to": "now"},
                "templating": {"list": variables},
                "panels": [panel.as_json(number, select) for number, panel in enumerate(panels)],
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    for each in DASHBOARDS:
        (FOLDER / each).write_text(dashboard(each))
