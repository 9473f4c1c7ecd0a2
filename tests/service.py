"""A whole service for tests: `kvblend serve` on the demo model, with vLLM and the connector, as a child process."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from kvblend.cli.engine import free_port
from kvblend.cli.server_process import ServerProcess

__all__ = ["RunningService", "running_service", "service"]

START_TIMEOUT_S = 400.0
MAX_MODEL_LEN = 4096


@dataclass(frozen=True)
class RunningService:
    """Where the service answers, where its files lie, and the process of `kvblend serve`."""

    url: str
    home: Path
    cpu_path: Path
    process: ServerProcess

    @property
    def engine_pid(self) -> int:
        """The process id of the vLLM server that `kvblend serve` runs, which leads a session of its own."""
        assert self.process.pid is not None
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        pids = [int(pid) for file in children for pid in file.read_text().split()]
        servers = [pid for pid in pids if b"vllm.entrypoints" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(servers) == 1, f"not one vLLM server but {servers}"
        return servers[0]

    @property
    def engine_url(self) -> str:
        """Where that vLLM server answers."""
        arguments = Path(f"/proc/{self.engine_pid}/cmdline").read_text().split("\0")
        return f"http://127.0.0.1:{arguments[arguments.index('--port') + 1]}"

    @property
    def control_address(self) -> str:
        """Where that server's control channel answers."""
        environment = Path(f"/proc/{self.engine_pid}/environ").read_text().split("\0")
        return next(line for line in environment if line.startswith("KVBLEND_CONTROL=")).partition("=")[2]

    @property
    def num_running(self) -> int:
        """Requests that vLLM works on or holds waiting."""
        return self._metric("vllm:num_requests_running", "vllm:num_requests_waiting{")

    @property
    def num_begun(self) -> int:
        """Requests that vLLM has ever given a first token."""
        return self._metric("vllm:time_to_first_token_seconds_count")

    def _metric(self, *names: str) -> int:
        """The sum of what vLLM tells by names that begin so."""
        lines = httpx.get(f"{self.engine_url}/metrics").text.splitlines()
        return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines if line.startswith(names))

    @property
    def logs(self) -> str:
        """What the service and vLLM have said."""
        return "\n".join(path.read_text(errors="replace") for path in sorted((self.home / "logs").glob("*.log")))


@pytest.fixture(scope="session")
def service(
    demo_model_path: Path, embedding_model_path: Path, tmp_path_factory: pytest.TempPathFactory, dtype: str
) -> Iterator[RunningService]:
    """One service for the whole session: use collections of your own."""
    home = tmp_path_factory.mktemp("home")
    # A model this small may fill the space that JSON allows between its tokens until no token is left.
    options = ["--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}']
    with running_service(demo_model_path, embedding_model_path, home=home, dtype=dtype, options=options) as service:
        yield service


@contextmanager
def running_service(
    model: Path, embedding_model: Path, *, home: Path, dtype: str, options: Sequence[str] = ()
) -> Iterator[RunningService]:
    """Run it on a model's folder, with its files in `home`; `options` are vLLM's."""
    memory = Path("/dev/shm")
    cpu_path = Path(tempfile.mkdtemp(prefix="kvblend-test-", dir=memory if memory.is_dir() else None))
    port = free_port()
    command = [sys.executable, "-P", "-m", "kvblend.cli", "serve", str(model), "--port", str(port)]
    command += ["--home", str(home), "--embedding-model", str(embedding_model), "--dtype", dtype]
    command += ["--max-model-len", str(MAX_MODEL_LEN), "--", "--max-num-seqs", "16", "--enforce-eager"]
    command += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--trust-request-chat-template", *options]
    environment = {
        **os.environ,
        "KVBLEND_CPU_PATH": str(cpu_path),
        "KVBLEND_CPU_BYTES": str(1 << 30),
        "KVBLEND_DISK_BYTES": str(1 << 30),
        "KVBLEND_COST_MODEL": "0",  # the tests' prompts are short, and are to be blended
        "VLLM_LOGGING_LEVEL": "INFO",
    }
    url = f"http://127.0.0.1:{port}"
    process = ServerProcess(
        "kvblend serve",
        command,
        environment=environment,
        log_path=home / "logs" / "serve.log",
        health_url=f"{url}/readyz",
    )
    try:
        process.start()
        process.wait_ready(timeout_s=START_TIMEOUT_S)
        yield RunningService(url=url, home=home, cpu_path=cpu_path, process=process)
    finally:
        process.stop()
        shutil.rmtree(cpu_path, ignore_errors=True)
