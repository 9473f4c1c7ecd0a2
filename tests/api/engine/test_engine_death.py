"""vLLM killed in the middle of a request: a clean 503, and answers again once it is back."""

import os
import signal
import threading
import time
from typing import Any

import httpx

from tests.service import RunningService

BODY = {"question": "Tell a long story of the bridge of Vik.", "max_tokens": 1500}
RESTART_TIMEOUT_S = 300.0


def test_a_killed_vllm_costs_its_requests_and_nothing_else(service: RunningService) -> None:
    url = f"{service.url}/v1/collections/death"
    httpx.post(f"{service.url}/v1/collections", json={"name": "death"})
    job = httpx.post(f"{url}/documents", json={"text": "The bridge of Vik is closed in winter."}).json()
    wait_for(lambda: httpx.get(f"{url}/jobs/{job['id']}").json()["status"] == "succeeded", timeout_s=240)
    whole, lines, num_begun = httpx.Response(0), list[str](), service.num_begun

    def ask() -> None:
        nonlocal whole
        whole = httpx.post(f"{url}/query", json=BODY, timeout=240)

    def stream() -> None:
        with httpx.stream("POST", f"{url}/query", json={**BODY, "stream": True}, timeout=240) as streamed:
            lines.extend(filter(None, streamed.iter_lines()))

    threads = [threading.Thread(target=ask), threading.Thread(target=stream)]
    for thread in threads:
        thread.start()
    wait_for(lambda: service.num_begun >= num_begun + 2, timeout_s=120)  # one that has not is asked again, by design
    os.killpg(service.engine_pid, signal.SIGKILL)
    for thread in threads:
        thread.join(240)
    assert whole.status_code == 503
    assert int(whole.headers["Retry-After"]) > 0
    assert whole.json()["error"]["code"] == "engine_unavailable"
    assert lines[-2] == "event: error" and '"code":"engine_unavailable"' in lines[-1]
    assert httpx.get(f"{service.url}/healthz").status_code == 200
    assert httpx.post(f"{url}/search", json={"query": "bridge"}).json()["sources"]

    wait_for(lambda: httpx.get(f"{service.url}/readyz").status_code == 200, timeout_s=RESTART_TIMEOUT_S)
    again = httpx.post(f"{url}/query", json={**BODY, "max_tokens": 4}, timeout=120)
    assert again.status_code == 200
    assert again.json()["report"]["outcome"] == "blended", "the KV has outlived vLLM"


def wait_for(condition: Any, *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be in time"
        time.sleep(0.2)
