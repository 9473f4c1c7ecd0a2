"""The live guard on real vLLM with the connector: what it measures, hides, and gives up for a request."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from kvblend.api import ServiceConfig, create_app
from kvblend.api.quality.live_guard import IDLE_S
from kvblend.cli.engine import free_port
from kvblend.core.rest import GuardState
from kvblend.core.settings import Settings
from kvblend.sdk import Client
from tests.service import RunningService
from tests.tolerances import Tolerances

LAMPS = "The lamp of {town} burns seal oil since {year}. Its keeper counts the ships that pass and writes them down. "
TOWNS = ("Vik", "Halden", "Brenna", "Korsa")


@dataclass(frozen=True)
class GuardedService:
    """A second service in front of the same vLLM, on the same store."""

    url: str
    client: Client

    @property
    def state(self) -> GuardState:
        return GuardState.model_validate(httpx.get(f"{self.url}/readyz").json()["guard"])

    def metric(self, name: str) -> float:
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name} ")), 0.0)

    def compared_kl(self, question: str, **options: Any) -> float:
        """The KL of the answer to a new question, as the metrics tell it."""
        num_compared, kl_sum = self.state.num_compared, self.metric("kvblend_guard_kl_nats_sum")
        report = self.client.query("lamps", question, **options).report
        assert report.outcome == "blended"
        wait_until(lambda: self.state.num_compared > num_compared)
        return self.metric("kvblend_guard_kl_nats_sum") - kl_sum


@pytest.fixture(scope="module")
def guarded(
    service: RunningService, demo_model_path: Path, embedding_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GuardedService]:
    home = tmp_path_factory.mktemp("guarded")
    settings = Settings(
        home=home, cpu_path=service.cpu_path, disk_path=service.home / "kv", cost_model=False, guard_ratio=1.0
    )
    config = ServiceConfig(
        model=str(demo_model_path),
        embedding_model=embedding_model_path,
        engines=[(service.engine_url, service.control_address)],
        settings=settings,
    )
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(config), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, name="guarded service")
    thread.start()
    try:
        wait_until(lambda: server.started)
        url = f"http://127.0.0.1:{port}"
        with Client(url) as client:
            client.create_collection("lamps", passage_tokens=64)
            for index, town in enumerate(TOWNS):
                text = LAMPS.format(town=town, year=1700 + 31 * index) * 2
                assert client.wait(client.add_document("lamps", text, id=town), timeout_s=120).error is None
            yield GuardedService(url, client)
    finally:
        server.should_exit = True
        thread.join(30)


def test_the_kl_of_a_blend_is_a_metric(guarded: GuardedService, tolerances: Tolerances) -> None:
    """Reference: full prefill. Ours: everything repaired, and nothing."""
    repaired = guarded.compared_kl("Since when does the lamp of Halden burn?", recompute_ratio=1.0, max_tokens=8)
    reused = guarded.compared_kl("Since when does the lamp of Vik burn?", recompute_ratio=0.0, max_tokens=8)
    assert repaired < tolerances.demo
    assert reused > tolerances.control * tolerances.demo
    assert guarded.metric('kvblend_guard_samples_total{outcome="compared"}') == guarded.state.num_compared == 2
    state = guarded.state
    assert state.mean_kl == pytest.approx((repaired + reused) / 2)
    assert (state.num_held, state.misses_target) == (0, False), "the model is not calibrated"


def test_a_sampled_temperature_is_compared_too(guarded: GuardedService, tolerances: Tolerances) -> None:
    """An answer that full prefill would not have taken is still compared token by token."""
    question = "Who counts the ships that pass?"
    kl = guarded.compared_kl(question, recompute_ratio=1.0, max_tokens=8, temperature=1.5)
    assert kl < tolerances.demo


def test_the_caller_does_not_see_what_the_guard_asks(guarded: GuardedService) -> None:
    body = {
        "messages": [{"role": "user", "content": "What burns?"}],
        "max_tokens": 3,
        "temperature": 0.0,
        "kvblend": {"collection": "lamps"},
    }
    url = f"{guarded.url}/v1/chat/completions"
    plain = httpx.post(url, json=body, timeout=60).json()["choices"][0]
    assert plain["logprobs"] is None
    own = httpx.post(url, json={**body, "logprobs": True, "top_logprobs": 2}, timeout=60).json()["choices"][0]
    assert own["message"] == plain["message"]
    assert not own["logprobs"]["content"][0]["token"].startswith("token_id:")
    assert len(own["logprobs"]["content"][0]["top_logprobs"]) == 2


def test_a_request_ends_a_comparison(service: RunningService, guarded: GuardedService) -> None:
    """The guard's full prefill and its 32 tokens take a while; vLLM drops them for a request."""
    abandoned = 'kvblend_guard_samples_total{outcome="abandoned"}'
    documents = [LAMPS.format(town=f"Town{index}", year=index) * 16 for index in range(6)]
    body = {"prompt": "\n\nIn short:", "max_tokens": 32, "ignore_eos": True, "kvblend": {"documents": documents}}
    url = f"{guarded.url}/v1/completions"
    num_encoded = guarded.metric("kvblend_encoded_passages_total")
    httpx.post(url, json=body, timeout=300).raise_for_status()  # and the documents are encoded
    wait_until(lambda: guarded.metric("kvblend_encoded_passages_total") >= num_encoded + len(documents))
    body["kvblend"] = {"documents": documents[::-1]}  # what was prefilled just now is in vLLM's prefix cache
    answer = httpx.post(url, json=body, timeout=300).json()
    assert answer["kvblend"]["report"]["outcome"] == "blended"
    num_abandoned = guarded.metric(abandoned)

    def ask() -> bool:
        httpx.post(url, json={"prompt": "One", "max_tokens": 1}, timeout=60).raise_for_status()
        return guarded.metric(abandoned) > num_abandoned

    wait_until(ask, every_s=IDLE_S + 0.5)  # half a second into the comparison
    wait_until(lambda: service.num_running == 0)


def wait_until(condition: Callable[[], bool], *, every_s: float = 0.1) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be in time"
        time.sleep(every_s)
