"""deploy/grafana and the alert rules: of metrics that there are, in PromQL, by vLLM's conventions."""

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import promql_parser
import pytest

from kvblend.api.metrics import Metrics
from kvblend.api.tier_metrics import EVICTIONS, GAUGES
from kvblend.store.tier_counts import COUNTERS
from tests.deploy.dashboards import ALERTS, GRAFANA, MADE, NAMES, queries, rules
from tests.deploy.tools import ROOT, program

METRIC = re.compile(r"\b(?:kvblend_|vllm:)[a-z_:]+")


def exported() -> set[str]:
    """The names of every series of the service, of a histogram its buckets."""
    families = re.findall(r"^# TYPE (\w+) (\w+)$", Metrics().text().decode(), re.MULTILINE)
    names = {name + ("_bucket" if kind == "histogram" else "") for name, kind in families if name[-8:] != "_created"}
    names |= {f"kvblend_tier_{name.removeprefix('num_')}" for name in GAUGES}
    names |= {f"kvblend_tier_{name}_total" for name, _ in (*COUNTERS.values(), *EVICTIONS.values())}
    return names | {"kvblend_tenant_kv_bytes", "kvblend_tenant_jobs"}


def exported_by_connector() -> set[str]:
    source = (ROOT / "docs" / "metrics.md").read_text()  # which is made of the metrics themselves
    return set(re.findall(r"^\| `(vllm:kvblend_\w+)`", source, re.MULTILINE))


def exported_by_vllm() -> set[str]:
    """The connector's metrics, and vLLM's own as its source names them."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.submodule_search_locations is not None
    source = Path(spec.submodule_search_locations[0], "v1", "metrics", "loggers.py").read_text()
    own = set(re.findall(r'name="(vllm:\w+)"', source))
    own |= exported_by_connector()
    return {name + end for name in own for end in ("", "_total", "_bucket")}


@pytest.mark.parametrize("name", NAMES)
def test_dashboards_are_as_the_code_makes_them(name: str) -> None:
    assert (GRAFANA / name).read_text() == MADE["dashboard"](name)


def test_the_service_is_drawn_whole() -> None:
    drawn = {metric for query in queries("kvblend.json") for metric in METRIC.findall(query)}
    assert drawn == exported()


def test_what_is_drawn_of_vllm_is_there() -> None:
    drawn = {metric for query in queries("engines.json") for metric in METRIC.findall(query)}
    assert drawn <= exported_by_vllm()
    assert len(exported_by_connector()) > 7 and exported_by_connector() <= drawn


def test_alerts_are_on_metrics_that_there_are() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    named = {metric for rule in rules() for metric in METRIC.findall(rule["expr"])}
    assert len(named) > 5 and named <= exported() | exported_by_connector()
    assert recorded == {"kvblend:reused_share:rate1h"}


@pytest.mark.parametrize("name", NAMES)
def test_every_query_is_promql(name: str) -> None:
    for query in queries(name):
        promql_parser.parse(query)
    with pytest.raises(ValueError):
        promql_parser.parse(queries(name)[0] + ")")


@pytest.mark.parametrize("name", NAMES)
def test_panels_say_what_they_draw(name: str) -> None:
    """By vLLM's conventions: variables, `Metric:` in descriptions, `$__rate_interval` in rates."""
    board = json.loads((GRAFANA / name).read_text())
    source, *labels = board["templating"]["list"]
    assert source["type"] == "datasource" and source["query"] == "prometheus"
    for panel in board["panels"]:
        said, _, metrics = panel["description"].partition(" Metric: ")
        exprs = [target["expr"] for target in panel["targets"]]
        assert said and set(metrics.split(", ")) == {metric for expr in exprs for metric in METRIC.findall(expr)}
        assert panel["datasource"]["uid"] == f"${{{source['name']}}}"
        for expr in exprs:
            assert "[$__rate_interval]" in expr or "rate(" not in expr
            for label in labels:
                assert f'{label["name"]}=~"${label["name"]}"' in expr
    assert len({panel["title"] for panel in board["panels"]}) == len(board["panels"])


def test_alerts_fire_on_what_they_are_for(tmp_path: Path) -> None:
    promtool = program("promtool")
    shutil.copyfile(ALERTS, tmp_path / "alerts.yml")
    shutil.copyfile(Path(__file__).parent / "alerts_test.yml", tmp_path / "alerts_test.yml")
    for check in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        ended = subprocess.run([promtool, *check], cwd=tmp_path, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    tested = (tmp_path / "alerts_test.yml").read_text()
    assert all(rule["alert"] in tested for rule in rules() if "alert" in rule)
    assert all(
        f"`{rule['alert']}`" in (ROOT / "docs" / "kubernetes.md").read_text() for rule in rules() if "alert" in rule
    )
    # a threshold that is never reached is noticed
    (tmp_path / "alerts.yml").write_text(
        ALERTS.read_text().replace("kvblend_breaker_open == 1", "kvblend_breaker_open == 2")
    )
    ended = subprocess.run([promtool, "test", "rules", "alerts_test.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode != 0
