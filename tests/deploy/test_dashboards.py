"""deploy/grafana and the alert rules: of metrics that there are, in PromQL that a real Prometheus evaluates."""

import importlib.util
import json
import re
import runpy
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
import yaml

from kvblend.api.metrics import Metrics
from kvblend.api.tier_metrics import EVICTIONS, GAUGES
from kvblend.cli.engine import free_port
from kvblend.store.tier_counts import COUNTERS
from tests.api.scripted_service import scripted_service
from tests.deploy.tools import CHART, DEPLOY, ROOT, program

GRAFANA = DEPLOY / "grafana"
ALERTS = CHART / "files" / "alerts.yml"
MADE = runpy.run_path(str(GRAFANA / "make_dashboards.py"))
NAMES = sorted(MADE["DASHBOARDS"])
METRIC = re.compile(r"\b(?:kvblend_|vllm:)[a-z_:]+")
PATIENCE_S = 120.0


def panels(name: str) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads((GRAFANA / name).read_text())["panels"]
    return loaded


def queries(name: str) -> list[str]:
    """The PromQL of a dashboard as Grafana sends it, with every choice of its variables."""
    exprs = [target["expr"] for panel in panels(name) for target in panel["targets"]]
    return [re.sub(r"\$(instance|model_name)", ".*", expr).replace("$__rate_interval", "1m") for expr in exprs]


def rules() -> list[dict[str, str]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def exported() -> set[str]:
    """The names of every series of the service, of a histogram its buckets."""
    families = re.findall(r"^# TYPE (\w+) (\w+)$", Metrics().text().decode(), re.MULTILINE)
    names = {name + ("_bucket" if kind == "histogram" else "") for name, kind in families if name[-8:] != "_created"}
    names |= {f"kvblend_tier_{name.removeprefix('num_')}" for name in GAUGES}
    names |= {f"kvblend_tier_{name}_total" for name, _ in (*COUNTERS.values(), *EVICTIONS.values())}
    return names | {"kvblend_tenant_kv_bytes"}


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


@pytest.fixture
def prometheus(demo_model_path: Path, embedding_model_path: Path, tmp_path: Path) -> Iterator[str]:
    """The URL of a Prometheus that scrapes a running service and has deploy's alert rules."""
    command, port = program("prometheus"), free_port()
    with scripted_service(tmp_path / "home", model=demo_model_path, embedding_model=embedding_model_path) as service:
        config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
        config["global"]["scrape_interval"] = "1s"
        config["rule_files"] = [str(ALERTS)]
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [service.url.removeprefix("http://")]
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
        options = ["--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address=127.0.0.1:{port}"]
        with (
            (tmp_path / "log").open("wb") as log,
            subprocess.Popen([command, *options], cwd=tmp_path, stdout=log, stderr=log) as process,
        ):
            try:
                yield f"http://127.0.0.1:{port}"
            finally:
                process.terminate()


def test_a_real_prometheus_evaluates_them(prometheus: str) -> None:
    """Every query and every rule without an error; those of gauges that a service has from its start give values."""

    def evaluated(client: httpx.Client, query: str) -> list[Any]:
        answer = client.get("/api/v1/query", params={"query": query}).json()
        assert answer["status"] == "success", (query, answer)
        return list(answer["data"]["result"])

    with httpx.Client(base_url=prometheus) as client:
        until = time.monotonic() + PATIENCE_S
        scraped = False
        while not scraped and time.monotonic() < until:
            time.sleep(0.5)
            try:
                scraped = bool(evaluated(client, "count_over_time(kvblend_tier_files[1m]) > 2"))
            except httpx.TransportError:  # it still starts
                continue
        assert scraped
        there = {query: bool(evaluated(client, query)) for name in NAMES for query in queries(name)}
        for rule in rules():
            evaluated(client, rule["expr"])
        assert any("kvblend_breaker_open" in query for query, found in there.items() if found)
        assert any("kvblend_pending_deletions" in query for query, found in there.items() if found)
        assert any("kvblend_tier_used_bytes" in query for query, found in there.items() if found)
        assert any("kvblend_requests_total" in query for query, found in there.items() if found)
        groups = client.get("/api/v1/rules").json()["data"]["groups"]
        assert {rule["health"] for group in groups for rule in group["rules"]} <= {"ok", "unknown"}
