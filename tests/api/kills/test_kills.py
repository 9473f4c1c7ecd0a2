"""The whole service killed under running ingest and queries, and ended by SIGTERM: nothing is lost or left over.

`TEST_KILL_ROUNDS=50` kills it so often, and a real vLLM on the demo model as well, each alone and both together.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
import pytest

from kvblend.cli.engine import free_port
from kvblend.cli.server_process import ServerProcess
from kvblend.core.settings import Settings
from tests.api.kills.agreement import check_catalog_and_index, check_settled
from tests.api.kills.storing_engine import storing_engine
from tests.api.kills.traffic import COLLECTION, Traffic
from tests.service import RunningService

ROUNDS = int(os.environ.get("TEST_KILL_ROUNDS", "0"))
START_S = 600.0
Victim = Literal["service", "vllm", "both"]


@dataclass
class Killed:
    """A service that is killed and started again, on one home."""

    settings: Settings
    command: list[str]
    url: str
    model: Path
    scratch: Path
    process: ServerProcess | None = None

    def start(self) -> None:
        variables = self.settings.model_dump(include={"cpu_path", "cpu_bytes", "disk_bytes", "codec", "cost_model"})
        self.process = ServerProcess(
            "kvblend serve",
            self.command,
            environment={**os.environ, **{f"KVBLEND_{name.upper()}": str(value) for name, value in variables.items()}},
            log_path=self.scratch / "serve.log",
            health_url=f"{self.url}/readyz",
        )
        self.process.start()
        self.process.wait_ready(timeout_s=START_S)

    def kill(self, victim: Victim) -> None:
        assert self.process is not None and self.process.pid is not None
        running = RunningService(self.url, self.settings.home_path, self.settings.cpu_path, self.process)
        engine = running.engine_pid if victim != "service" else None
        if victim != "vllm":
            os.kill(self.process.pid, signal.SIGKILL)
        if engine is not None:
            os.killpg(engine, signal.SIGKILL)
        if victim != "vllm":
            self.process.stop()

    def terminate(self) -> int:
        """Its exit status, once it has ended."""
        assert self.process is not None and self.process._child is not None
        self.process._child.terminate()
        return self.process._child.wait(60)


def command(model: Path, embedding_model: Path, home: Path, port: int) -> list[str]:
    own = [sys.executable, "-P", "-m", "kvblend.cli", "serve", str(model), "--port", str(port), "--home", str(home)]
    return [*own, "--embedding-model", str(embedding_model)]


@pytest.fixture
def scripted(demo_model_path: Path, embedding_model_path: Path, tmp_path: Path) -> Iterator[Killed]:
    settings = Settings(
        home=tmp_path / "home", cpu_path=tmp_path / "cpu", cpu_bytes=1 << 28, disk_bytes=1 << 28, codec="raw",
        cost_model=False,
    )  # fmt: skip
    address, port = f"ipc://{tmp_path}/control.sock", free_port()
    with storing_engine(address, settings) as engine:
        own = command(demo_model_path, embedding_model_path, settings.home, port)
        own += ["--engine-url", engine.url, "--control", address]
        killed = Killed(settings, own, f"http://127.0.0.1:{port}", demo_model_path, tmp_path)
        yield killed
        if killed.process is not None:
            killed.process.stop()


def begin(killed: Killed, *, pause_s: float = 0.0) -> Traffic:
    killed.start()
    body = {"name": COLLECTION, "passage_tokens": 64}
    assert httpx.post(f"{killed.url}/v1/collections", json=body, timeout=60).status_code == 201
    traffic = Traffic(killed.url, pause_s=pause_s)
    traffic.start()
    return traffic


def wait_for_jobs(traffic: Traffic, number: int) -> None:
    deadline = time.monotonic() + 120
    while len(traffic.jobs) < number:
        assert time.monotonic() < deadline, "the traffic stands still"
        time.sleep(0.05)


def test_a_killed_service_loses_nothing_and_one_that_is_ended_says_so(scripted: Killed) -> None:
    traffic = begin(scripted)
    for _ in range(max(1, ROUNDS)):
        wait_for_jobs(traffic, len(traffic.jobs) + 8)
        time.sleep(random.Random(len(traffic.jobs)).random() / 2)
        scripted.kill("service")
        check_catalog_and_index(scripted.settings.home_path, scripted.model, scripted.scratch)
        scripted.start()
    wait_for_jobs(traffic, len(traffic.jobs) + 8)
    traffic.stop()
    check_settled(traffic, scripted.settings, scripted.model, scripted.scratch)
    traffic.start()
    wait_for_jobs(traffic, len(traffic.jobs) + 2)
    assert scripted.terminate() == 0
    traffic.stop()
    check_catalog_and_index(scripted.settings.home_path, scripted.model, scripted.scratch)
    assert 202 in traffic.statuses and 204 in traffic.statuses
    assert set(traffic.statuses) <= {200, 202, 204, 404, 503}, sorted(set(traffic.statuses))
    assert traffic.broken_streams == []


@pytest.mark.skipif(not ROUNDS, reason="takes minutes: TEST_KILL_ROUNDS=50")
@pytest.mark.timeout(36_000)
@pytest.mark.parametrize("victim", ["service", "vllm", "both"])
def test_with_a_real_vllm(victim: Victim, demo_model_path: Path, embedding_model_path: Path, tmp_path: Path) -> None:
    settings = Settings(
        home=tmp_path / "home", cpu_path=Path(f"/dev/shm/kvblend-kills-{os.getpid()}"), cpu_bytes=1 << 30,
        disk_bytes=1 << 30, cost_model=False,
    )  # fmt: skip
    port = free_port()
    own = command(demo_model_path, embedding_model_path, settings.home, port)
    own += ["--max-model-len", "4096", "--", "--max-num-seqs", "16", "--enforce-eager"]
    killed = Killed(settings, own, f"http://127.0.0.1:{port}", demo_model_path, tmp_path)
    try:
        traffic = begin(killed, pause_s=0.3)
        for number in range(ROUNDS):
            wait_for_jobs(traffic, len(traffic.jobs) + 4)
            time.sleep(2 * random.Random(number).random())
            killed.kill(victim)
            check_catalog_and_index(settings.home_path, killed.model, killed.scratch)
            if victim == "vllm":
                assert killed.process is not None
                killed.process.wait_ready(timeout_s=START_S)
            else:
                killed.start()
            print(f"{victim}: {number + 1} kills, {len(traffic.jobs)} jobs", flush=True)
        traffic.stop()
        check_settled(traffic, settings, killed.model, killed.scratch)
        assert not {500, 504}.intersection(traffic.statuses), sorted(set(traffic.statuses))
        assert traffic.broken_streams == []
    finally:
        if killed.process is not None:
            killed.process.stop()
        for path in sorted(settings.cpu_path.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
