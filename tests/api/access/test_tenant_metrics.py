"""What /metrics says of each tenant, and that it says nothing of one that has no key any more."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvblend.api.access import key_ring
from kvblend.api.metrics import Metrics
from kvblend.core.report import BlendReport
from tests.api.access.served_keys import KEYS, client_of, write_keys
from tests.api.scripted_service import ScriptedService, scripted_service

SERIES = re.compile(r"^(kvblend_tenant_\w+)\{(.*)\} (\S+)$", re.MULTILINE)
CHAT = {"messages": [{"role": "user", "content": "?"}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tenant_metrics")


@pytest.fixture(scope="module")
def scripted(folder: Path, demo_model_path: Path, embedding_model_path: Path) -> Iterator[ScriptedService]:
    keys = write_keys(folder / "keys.yaml", "{beta: {requests_per_minute: 2}}")

    def blended(prompt: list[int], order: object) -> BlendReport:
        return BlendReport(outcome="blended", reused_tokens=40, recomputed_tokens=9, selected_tokens=6)

    with scripted_service(
        folder, model=demo_model_path, embedding_model=embedding_model_path, blend=blended, keys=keys
    ) as service:
        yield service


def series(scripted: ScriptedService) -> dict[str, float]:
    """Every tenant's series by name and labels, as an operator reads them."""
    with client_of(scripted.url, "ops") as client:
        text = client.get("/metrics").raise_for_status().text
    return {f"{name}{{{labels}}}": float(value) for name, labels, value in SERIES.findall(text)}


def once(scripted: ScriptedService, holds: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """The series, once they are so."""
    deadline = time.monotonic() + 120
    while not holds(found := series(scripted)):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


def test_answers_are_counted_for_the_tenant_that_asks(scripted: ScriptedService) -> None:
    supplied = {**CHAT, "kvblend": {"documents": ["A passage that acme's application brings."]}}
    with client_of(scripted.url, "acme-query") as acme, client_of(scripted.url, "ops") as ops:
        for body in (CHAT, {**CHAT, "stream": True}, {**CHAT, "kvblend": {}}, supplied, {**supplied, "stream": True}):
            assert acme.post("/v1/chat/completions", json=body).status_code == 200
        assert ops.post("/v1/chat/completions", json={**CHAT, "stream": True}).status_code == 200
    found = series(scripted)
    assert found['kvblend_tenant_answers_total{outcome="prefilled",tenant="acme"}'] >= 3
    assert sum(count for name, count in found.items() if re.match(r'.*answers_total.*tenant="acme"', name)) == 5
    assert found['kvblend_tenant_answers_total{outcome="prefilled",tenant="default"}'] == 1
    assert found['kvblend_tenant_ttft_seconds_count{tenant="acme"}'] >= 2, "what streams has a first token"
    assert found['kvblend_tenant_ttft_seconds_count{tenant="default"}'] == 1
    assert not any("answers" in name and 'tenant="beta"' in name for name in found)


def test_refusals_are_counted_by_the_bound_they_met(scripted: ScriptedService) -> None:
    with client_of(scripted.url, "beta-admin") as beta:
        statuses = [beta.get("/v1/collections").status_code for _ in range(4)]
    assert statuses == [200, 200, 429, 429]
    found = series(scripted)
    assert found['kvblend_tenant_refused_total{code="rate_limited",tenant="beta"}'] == 2
    assert not any("refused" in name and 'tenant="beta"' not in name for name in found)


def test_jobs_are_told_while_they_are_under_way(scripted: ScriptedService) -> None:
    running = 'kvblend_tenant_jobs{status="running",tenant="acme"}'
    assert series(scripted)[running] == 0
    scripted.engine.hangs = True  # so that its encodes do
    try:
        with client_of(scripted.url, "acme-ingest") as client:
            client.post("/v1/collections", json={"name": "jobs"}).raise_for_status()
            for number in range(2):
                body = {"text": f"A text, the {number}th. " * 30}
                assert client.post("/v1/collections/jobs/documents", json=body).status_code == 202
        found = once(scripted, lambda found: found[running] == 2)
        assert found['kvblend_tenant_jobs{status="running",tenant="beta"}'] == 0
        assert found['kvblend_tenant_jobs{status="queued",tenant="acme"}'] == 0
    finally:
        scripted.engine.hangs = False
    once(scripted, lambda found: found[running] == 0)


def test_a_tenant_without_keys_leaves_no_series(
    scripted: ScriptedService, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_ring, "LOOK_EVERY_S", 0.0)
    assert any('tenant="beta"' in name for name in series(scripted))
    new = write_keys(folder / "new.yaml")
    new.write_text("\n".join(line for line in new.read_text().splitlines() if "tenant: beta" not in line))
    new.replace(folder / "keys.yaml")
    found = once(scripted, lambda found: not any('tenant="beta"' in name for name in found))
    assert {tenant for tenant, _ in KEYS.values()} - {"beta"} <= {
        tenant for name in found for tenant in re.findall('tenant="(.*?)"', name)
    }


def test_a_tenant_that_comes_back_is_counted_from_nothing() -> None:
    tenants = ["acme"]
    metrics = Metrics(lambda: tenants)
    for tenant in ("acme", "other", ""):
        for _ in range(3):
            metrics.request(route="/", method="GET", status=429, tenant=tenant, code="too_many_requests")
    text = metrics.text().decode()
    assert 'kvblend_tenant_requests_total{status="429",tenant="acme"} 3.0' in text
    assert 'kvblend_tenant_requests_total{status="429",tenant=""} 3.0' in text
    assert "other" not in text
    tenants.append("other")
    metrics.request(route="/", method="GET", status=200, tenant="other", code=None)
    text = metrics.text().decode()
    assert 'kvblend_tenant_requests_total{status="200",tenant="other"} 1.0' in text
    assert 'status="429",tenant="other"' not in text
