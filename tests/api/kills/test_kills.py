"""The whole service killed under running ingest and queries, and ended by SIGTERM: nothing is lost or left over.

`TEST_KILL_ROUNDS=50` kills it so often, and with a real vLLM on the demo model the service, vLLM, and both together.
"""

import os
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from signal import SIGKILL
from typing import Literal

import httpx
import pytest

from kvblend.cli.engine import free_port
from kvblend.core.settings import Settings
from tests.api.engine.vllm_servers import VLLMServer
from tests.api.kills.agreement import check_catalog_and_index, check_settled
from tests.api.kills.storing_engine import storing_engine
from tests.api.kills.traffic import COLLECTION, Traffic
from tests.preloaded import start, wait_ready

ROUNDS = int(os.environ.get("TEST_KILL_ROUNDS", "0"))
START_S = 600.0
DRAIN_S = 10.0
Victim = Literal["service", "vllm", "both"]


@dataclass
class Killed:
    """A service that is killed and started again, on one home, and the vLLM behind it where that is killed, too."""

    settings: Settings
    arguments: list[str]
    url: str
    model: Path
    scratch: Path
    vllm: VLLMServer | None = None
    dtype: str = ""
    """vLLM's."""
    service: BaseProcess | None = None
    engine: BaseProcess | None = None
    traffic: Traffic | None = None

    def start(self) -> None:
        """Whatever does not run, vLLM first; returns once the service is ready."""
        if self.vllm is not None and self.engine is None:
            self.engine = self.vllm.started(self.model, self.dtype)
            self.vllm.wait_ready(self.engine)
        if self.service is None:
            variables = self.settings.model_dump(include={"cpu_path", "cpu_bytes", "disk_bytes", "codec", "cost_model"})
            environment = {**os.environ, **{f"KVBLEND_{name.upper()}": str(value) for name, value in variables.items()}}
            self.service = start(
                ["kvblend.cli", *self.arguments], environment, out=self.scratch / "out.log", err=self.log_path
            )
        wait_ready(self.service, f"{self.url}/readyz", log_path=self.log_path, timeout_s=START_S)

    @property
    def log_path(self) -> Path:
        return self.scratch / "serve.log"

    def kill(self, victim: Victim) -> None:
        killed = []
        if victim != "vllm" and self.service is not None:
            killed.append(self.service)
            self.service = None
        if victim != "service" and self.engine is not None:
            killed.append(self.engine)
            self.engine = None
        shared = {path for process in killed for path in _shared_memory(process)}
        for process in killed:
            assert process.pid is not None
            with suppress(ProcessLookupError):  # it has ended by itself, as it was told to
                os.killpg(process.pid, SIGKILL)
        for process in killed:
            process.join()
        for path in shared:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        self.kill("both")
        if self.traffic is not None:
            self.traffic.stop()

    def terminate(self) -> int | None:
        """The service's exit status, once it has ended."""
        assert self.service is not None
        self.service.terminate()
        self.service.join(60)
        return self.service.exitcode


def _shared_memory(process: BaseProcess) -> set[Path]:
    """Segments that the process and what it started have mapped, which nobody unlinks when they are killed."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) != process.pid:
                continue
            maps = (folder / "maps").read_text().splitlines()
        except OSError:  # it has ended
            continue
        found |= {Path(line.split()[5]) for line in maps if "/dev/shm/psm_" in line}
    return found


@pytest.fixture
def made(demo_model_path: Path, embedding_model_path: Path, tmp_path: Path) -> Iterator[Killed]:
    """A service on a store of its own, which has room for all that is ingested, without an engine."""
    settings = Settings(
        home=tmp_path / "home", cpu_path=tmp_path / "cpu", cpu_bytes=1 << 30, disk_bytes=1 << 30, codec="raw",
        cost_model=False,
    )  # fmt: skip
    port = free_port()
    arguments = ["serve", str(demo_model_path), "--port", str(port), "--home", str(settings.home)]
    arguments += ["--embedding-model", str(embedding_model_path)]
    killed = Killed(settings, arguments, f"http://127.0.0.1:{port}", demo_model_path, tmp_path)
    try:
        yield killed
    finally:
        killed.close()


@pytest.fixture
def scripted(made: Killed) -> Iterator[Killed]:
    address = f"ipc://{made.scratch}/control.sock"
    with storing_engine(address, made.settings) as engine:
        made.arguments += ["--engine-url", engine.url, "--control", address]
        yield made


@pytest.fixture
def real(made: Killed, dtype: str) -> Killed:
    fields = {"home", "cpu_path", "cpu_bytes", "disk_bytes", "codec", "cost_model"}
    made.dtype = dtype
    made.vllm = VLLMServer(
        free_port(), f"ipc://{made.scratch}/control.sock", made.settings.model_dump(include=fields),
        made.scratch / "vllm.log",
    )  # fmt: skip
    made.arguments += ["--engine-url", made.vllm.url, "--control", made.vllm.control]
    return made


def begin(killed: Killed, *, pause_s: float = 0.0) -> Traffic:
    killed.start()
    body = {"name": COLLECTION, "passage_tokens": 64}
    assert httpx.post(f"{killed.url}/v1/collections", json=body, timeout=60).status_code == 201
    killed.traffic = Traffic(killed.url, pause_s=pause_s)
    killed.traffic.start()
    return killed.traffic


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
def test_with_a_real_vllm(victim: Victim, real: Killed) -> None:
    traffic = begin(real, pause_s=0.1)
    for number in range(ROUNDS):
        wait_for_jobs(traffic, len(traffic.jobs) + 4)
        time.sleep(2 * random.Random(number).random())
        real.kill(victim)
        if victim != "vllm":  # a service that runs goes on writing: its files are no whole
            check_catalog_and_index(real.settings.home_path, real.model, real.scratch)
        real.start()
        print(f"{victim}: {number + 1} kills, {len(traffic.jobs)} jobs", flush=True)
    traffic.stop()
    check_settled(traffic, real.settings, real.model, real.scratch)
    traffic.start()
    wait_for_jobs(traffic, len(traffic.jobs) + 2)
    began = time.monotonic()
    assert real.terminate() == 0 and time.monotonic() - began < DRAIN_S
    traffic.stop()
    check_catalog_and_index(real.settings.home_path, real.model, real.scratch)
    assert not {500, 504}.intersection(traffic.statuses), sorted(set(traffic.statuses))
    assert traffic.broken_streams == []
