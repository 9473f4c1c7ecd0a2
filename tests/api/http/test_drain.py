"""A service on its way to its end: nothing new, time for what runs, and a word to what takes longer."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from kvblend.api import ServiceConfig, create_app
from kvblend.api.http import drain
from kvblend.cli.engine import free_port
from kvblend.cli.run_service import DrainingServer
from kvblend.core.settings import Settings
from tests.api.scripted_engine import ScriptedEngine

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "?"}], "max_tokens": 100}


@dataclass
class Ending:
    """A service that can be told to end."""

    url: str
    engine: ScriptedEngine
    server: DrainingServer
    thread: threading.Thread
    home: Path

    def has_ended(self) -> bool:
        self.thread.join(30)
        return not self.thread.is_alive()


@pytest.fixture
def ending(
    demo_model_path: Path, embedding_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Ending]:
    monkeypatch.setattr(drain, "LIMIT_S", 4.0)
    engine = ScriptedEngine(token_s=0.1)
    with engine.running():
        config = ServiceConfig(
            model=str(demo_model_path),
            embedding_model=embedding_model_path,
            engines=[(engine.url, f"ipc://{tmp_path}/silent.sock")],
            settings=Settings(home=tmp_path / "home", cpu_bytes=0, disk_bytes=1 << 28, cost_model=False),
        )
        app, port = create_app(config), free_port()
        server = DrainingServer(uvicorn.Config(app, port=port, log_level="warning"), app.state.drain, lambda: None)
        thread = threading.Thread(target=server.run, name="service")
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.05)
        yield Ending(f"http://127.0.0.1:{port}", engine, server, thread, tmp_path / "home")
        server.should_exit = True
        thread.join(30)


def begin(ending: Ending, num_running: int) -> None:
    """Begin the end once so many answers run."""
    deadline = time.monotonic() + 120
    while len([each for each in ending.engine.bodies if "messages" in each]) < num_running:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    ending.server._drain.begin()


def test_what_runs_may_finish_and_nothing_new_begins(ending: Ending, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "LIMIT_S", 120.0)
    ending.engine.token_s = 0.5
    with ThreadPoolExecutor() as threads:
        body = {**CHAT, "max_tokens": 1000}
        answers = [
            threads.submit(httpx.post, f"{ending.url}/v1/chat/completions", json={**body, "stream": True}, timeout=60),
            threads.submit(httpx.post, f"{ending.url}/v1/chat/completions", json=body, timeout=60),
        ]
        begin(ending, 2)
        for path in ("/readyz", "/v1/collections"):
            refused = httpx.get(f"{ending.url}{path}", timeout=60)
            assert refused.status_code == 503 and int(refused.headers["Retry-After"]) > 0
            assert refused.json()["error"]["code"] == "shutting_down"
        assert httpx.get(f"{ending.url}/healthz", timeout=60).status_code == 200
        ending.engine.token_s = 0.0  # now they do
        streamed, whole = (answer.result() for answer in answers)
    assert whole.status_code == 200 and streamed.status_code == 200
    assert streamed.text.rstrip().endswith("[DONE]")
    assert ending.has_ended()


def test_what_takes_longer_is_told(ending: Ending) -> None:
    ending.engine.token_s = 0.5
    url = f"{ending.url}/v1/chat/completions"
    with ThreadPoolExecutor() as threads:
        answers = [
            threads.submit(httpx.post, url, json={**CHAT, "stream": True}, timeout=60),
            threads.submit(httpx.post, url, json={**CHAT, "kvblend": {"documents": ["A passage."]}}, timeout=60),
        ]
        begin(ending, 2)
        streamed, whole = (answer.result() for answer in answers)
    data = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line.startswith("data: ")]
    assert len(data) > 1 and json.loads(data[-1])["error"]["code"] == "shutting_down"
    assert whole.status_code == 503 and whole.json()["error"]["code"] == "shutting_down"
    assert ending.has_ended()
    deadline = time.monotonic() + 120
    while ending.engine.num_aborted < 2:
        assert time.monotonic() < deadline, "vLLM is told to stop"
        time.sleep(0.05)
