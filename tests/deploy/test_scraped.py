"""Every query of the dashboards and every alert rule on a real Prometheus: it has scraped a service that was used, and
vLLM's own metrics of an engine that was."""

import math
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fastapi import FastAPI
from vllm.entrypoints.serve.instrumentator.metrics import attach_router

from kvblend.cli.engine import free_port
from kvblend.core.errors import KVBlendError
from kvblend.core.settings import Settings
from kvblend.sdk import Client
from kvblend.store import TieredStore
from kvblend.vllm_connector.connector_stats import ConnectorStats
from tests.api.console.harbour import harbour
from tests.api.console.scripted_blends import ScriptedBlends
from tests.api.front import serving
from tests.api.scripted_service import INFO, ScriptedService, scripted_service
from tests.deploy.dashboards import ALERTS, NAMES, queries, rules
from tests.deploy.tools import DEPLOY, program
from tests.store.remote.servers import ValkeyServer
from tests.vllm_connector.vllm_metrics import VLLMMetrics

PATIENCE_S = 120.0
CPU_BYTES = 1 << 16
"""So little that passages are evicted."""
UNNAMED = {"le", "tenant"}
"""Labels that no answer has: a quantile has no bucket, and the one tenant of a service without keys no name."""


class Used:
    """A service, the engine behind it, and a Prometheus that scrapes both."""

    def __init__(self, service: ScriptedService, store: TieredStore, vllm: VLLMMetrics, prometheus: str) -> None:
        self._store, self._vllm, self._num_rounds = store, vllm, 0
        self._client, self._prometheus = Client(service.url), httpx.Client(base_url=prometheus, timeout=PATIENCE_S)
        self._query_url = f"{service.url}/v1/collections/used/query"

    def use(self) -> None:
        """A document comes, and questions of every kind are asked, more at a time than may; the engine takes a step."""
        self._num_rounds += 1
        client, number = self._client, self._num_rounds
        client.wait(client.add_document("used", f"Ship {number} passed the lock at {number} o'clock.", id=f"{number}"))
        question = f"Which ship passed at {number}?"
        client.search("used", question)
        for reuse in ("blend", "none"):
            client.query("used", question, reuse=reuse)
        with pytest.raises(KVBlendError):
            client.query("nowhere", question)
        with ThreadPoolExecutor() as threads:
            asked = [threads.submit(httpx.post, self._query_url, json={"question": question}) for _ in range(4)]
        assert {each.result().status_code for each in asked} <= {200, 429}
        self._vllm.step(ConnectorStats.of(self._store, "worker 0", {"cpu": 3, "none": 1}))

    def values(self, query: str) -> list[float]:
        """The numbers that it evaluates to now, of series that have the labels it sums by.

        Raises AssertionError where it is an error.
        """
        answer = self._prometheus.get("/api/v1/query", params={"query": query}).json()
        assert answer["status"] == "success", (query, answer)
        labels = {label for by in re.findall(r"\bby \((.*?)\)", query) for label in by.split(", ")} - UNNAMED
        found = [series for series in answer["data"]["result"] if labels <= series["metric"].keys()]
        values = [float(series["value"][1]) for series in found]
        return [value for value in values if not math.isnan(value)]

    def health(self) -> set[str]:
        groups = self._prometheus.get("/api/v1/rules").json()["data"]["groups"]
        return {rule["health"] for group in groups for rule in group["rules"]}

    def is_up(self) -> bool:
        try:
            return sum(self.values("up")) == 2
        except httpx.TransportError:  # it still starts
            return False

    def close(self) -> None:
        self._client.close()
        self._prometheus.close()


@pytest.fixture(scope="module")
def used(
    demo_model_path: Path,
    embedding_model_path: Path,
    tiny_model_path: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Used]:
    command, port, folder = program("prometheus"), free_port(), tmp_path_factory.mktemp("scraped")
    info = INFO.model_copy(update={"max_raw_logprobs": 20})
    with ExitStack() as closing:
        valkey = closing.enter_context(ValkeyServer(folder))
        tiers: dict[str, Any] = {"cpu_path": folder / "cpu", "cpu_bytes": CPU_BYTES, "remote": valkey.url}
        settings = Settings(home=folder / "home", disk_bytes=1 << 30, **tiers)
        store = closing.enter_context(TieredStore.from_settings(settings))
        blends = ScriptedBlends(store, info)
        service = closing.enter_context(
            scripted_service(
                folder,
                model=demo_model_path,
                embedding_model=embedding_model_path,
                info=info,
                blend=blends.blend,
                encode=blends.encode,
                guard_ratio=1.0,
                max_requests=1,
                **tiers,
            )
        )
        closing.enter_context(harbour(service, "used"))
        vllm, page = VLLMMetrics(tiny_model_path("llama3rope")), FastAPI()
        attach_router(page)
        vllm_url = closing.enter_context(serving(page))
        config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
        config["global"]["scrape_interval"] = "1s"
        config["rule_files"] = [str(ALERTS)]
        for scrape, url in zip(config["scrape_configs"], (service.url, vllm_url), strict=True):
            scrape["static_configs"][0]["targets"] = [url.removeprefix("http://")]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        options = ["--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address=127.0.0.1:{port}"]
        log = closing.enter_context((folder / "log").open("wb"))
        process = closing.enter_context(subprocess.Popen([command, *options], cwd=folder, stdout=log, stderr=log))
        closing.callback(process.terminate)
        used = Used(service, store, vllm, f"http://127.0.0.1:{port}")
        closing.callback(used.close)
        until = time.monotonic() + PATIENCE_S
        while not used.is_up():
            assert time.monotonic() < until
            time.sleep(0.2)
        yield used


@pytest.mark.parametrize("name", NAMES)
def test_every_query_has_values(used: Used, name: str) -> None:
    """A wrong label, or a value of one that there is not, has none."""
    missing = set(queries(name))
    until = time.monotonic() + PATIENCE_S
    while missing and time.monotonic() < until:
        used.use()
        time.sleep(1.5)  # the guard compares while the engine is idle
        missing -= {query for query in missing if used.values(query)}
    assert not missing


def test_a_query_by_a_label_that_there_is_not_has_no_values(used: Used) -> None:
    used.use()
    assert used.values("sum by (tier) (kvblend_tier_files)")
    for query in ('sum by (tier) (kvblend_tier_files{tier="dsk"})', "sum by (teir) (kvblend_tier_files)"):
        assert used.values(query) == []


def test_every_rule_is_evaluated(used: Used) -> None:
    for rule in rules():
        used.values(rule["expr"])
    assert used.health() <= {"ok", "unknown"}
