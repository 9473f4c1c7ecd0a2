"""Makes docs/metrics.md of the metrics themselves: `make reference`."""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric

from kvblend.api.access.tenant_kv import TenantKV
from kvblend.api.kv.owners import KVOwners
from kvblend.api.metrics import Metrics
from kvblend.api.tier_metrics import TierMetrics
from kvblend.store import DiskTier, TieredStore
from kvblend.store.tier_counts import COUNTERS

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
    wrapped = [own for own in vars(Metrics()).values() if isinstance(own, MetricWrapperBase)]
    described = [(family, own._labelnames) for own in wrapped for family in own.describe()]
    service = [family for family, _ in described]
    with tempfile.TemporaryDirectory() as folder, TieredStore([DiskTier(Path(folder), budget_bytes=1 << 20)]) as store:
        tiers = [*TierMetrics(store).collect(), *TenantKV(store, KVOwners("none")).collect()]
    labels = {family.name: names for family, names in described}
    labels |= {family.name: vars(family)["_labelnames"] for family in tiers}
    vllm = (
        f"| `vllm:kvblend_tier_{name}_total` | counter | vLLM's own, `tier`, `op` | {text} |"
        for name, text in COUNTERS.values()
    )
    return "\n".join(
        [
            HEAD,
            *_table("Requests, answers, ingests, quality", service, labels),
            *_table("The store", tiers, labels),
            "`op` is `lookup`, `fetch` or `put`; these are the service's own calls.\n",
            "## In a vLLM server's `/metrics`\n",
            "The same counts of the connector's calls, in vLLM's scheduler and workers.\n",
            "| metric | type | labels | says |\n|---|---|---|---|",
            *vllm,
            "",
        ]
    )


def _table(title: str, families: Iterable[Metric], labels: Mapping[str, Iterable[str]]) -> list[str]:
    rows = (
        f"| `{family.name}{'_total' if family.type == 'counter' else ''}` | {family.type} | "
        f"{', '.join(f'`{label}`' for label in labels[family.name])} | {family.documentation} |"
        for family in families
    )
    return [f"## {title}\n", "| metric | type | labels | says |\n|---|---|---|---|", *rows, ""]


if __name__ == "__main__":
    PAGE.write_text(reference())
