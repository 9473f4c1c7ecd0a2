"""Makes docs/metrics.md of the metrics themselves: `make reference`."""

import tempfile
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric

from kvblend.api.access.tenant_kv import TenantKV
from kvblend.api.ingest.tenant_jobs import TenantJobs
from kvblend.api.kv.owners import KVOwners
from kvblend.api.metrics import Metrics
from kvblend.api.tier_metrics import TierMetrics
from kvblend.store import DiskTier, TieredStore
from kvblend.vllm_connector.connector_stats import ConnectorPromMetrics

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"

HEAD = """\
# Metrics

What Prometheus reads. The service's are at its `/metrics`, which needs an operator's key where there are keys, unless
`KVBLEND_OPEN_ROUTES` says otherwise ([settings.md](settings.md)); each vLLM server has its own `/metrics`. Which of
them to watch: [operations](operations.md#what-to-watch). This page is made of the code by `make reference`.

Counts begin anew with their process. A histogram has `_bucket`, `_sum` and `_count` behind its name.
"""


def reference() -> str:
    """Return docs/metrics.md as it should be."""
    metrics = Metrics()
    service, labels = _described(own for own in vars(metrics).values() if isinstance(own, MetricWrapperBase))
    tenants, tenant_labels = _described(
        own for own in vars(metrics.tenants).values() if isinstance(own, MetricWrapperBase)
    )
    jobs = list(TenantJobs(list, list).collect())
    connector, connector_labels = _described(_of_connector())
    with tempfile.TemporaryDirectory() as folder, TieredStore([DiskTier(Path(folder), budget_bytes=1 << 20)]) as store:
        tiers = [*TierMetrics(store).collect(), *TenantKV(store, KVOwners("none")).collect()]
    labels |= connector_labels | tenant_labels
    labels |= {family.name: vars(family)["_labelnames"] for family in (*tiers, *jobs)}
    return "\n".join(
        [
            HEAD,
            *_table("Requests, answers, ingests, quality", service, labels),
            *_table("Of each tenant", [*tenants, *jobs], labels),
            "Of tenants that have a key; without keys all is the tenant `default`'s. The series of one that has lost "
            "its last key go with it, its jobs' when these have ended.\n",
            *_table("The store", tiers, labels),
            "`op` is `lookup`, `fetch` or `put`; these are the service's own calls.\n",
            *_table("In a vLLM server's `/metrics`", connector, labels),
            "The connector's, told at the end of engine steps: an idle engine's stay as they were.\n",
        ]
    )


def _described(wrapped: Iterable[MetricWrapperBase]) -> tuple[list[Metric], dict[str, Iterable[str]]]:
    """Metrics, and the labels of each by its name."""
    described = [(family, own._labelnames) for own in wrapped for family in own.describe()]
    return [family for family, _ in described], {family.name: names for family, names in described}


def _of_connector() -> list[MetricWrapperBase]:
    """As vLLM has them made, in no registry."""
    made: list[MetricWrapperBase] = []

    def make(kind: type[MetricWrapperBase], **fields: object) -> MetricWrapperBase:
        made.append(kind(**fields, registry=None))  # type: ignore[arg-type]
        return made[-1]

    kinds = {kind: partial(make, kind) for kind in (Counter, Gauge, Histogram)}
    ConnectorPromMetrics(SimpleNamespace(kv_transfer_config=None), kinds, ["model_name", "engine"], {})
    return made


def _table(title: str, families: Iterable[Metric], labels: Mapping[str, Iterable[str]]) -> list[str]:
    rows = (
        f"| `{family.name}{'_total' if family.type == 'counter' else ''}` | {family.type} | "
        f"{', '.join(f'`{label}`' for label in labels[family.name])} | {family.documentation} |"
        for family in families
    )
    return [f"## {title}\n", "| metric | type | labels | says |\n|---|---|---|---|", *rows, ""]


if __name__ == "__main__":
    PAGE.write_text(reference())
