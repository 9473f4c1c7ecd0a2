"""Real vLLM servers with the connector, started side by side."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from signal import SIGKILL
from typing import Any

from kvblend.cli.engine import engine_command, engine_environment
from tests.preloaded import start, wait_ready

__all__ = ["VLLMServer", "running_servers"]

START_TIMEOUT_S = 400.0
STOP_GRACE_S = 20.0


@dataclass(frozen=True)
class VLLMServer:
    """Where it answers, its control channel, the settings of its connector, and its log."""

    port: int
    control: str
    settings: Mapping[str, Any]
    log_path: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def started(self, model: Path, dtype: str) -> BaseProcess:
        """The process of a server of that model, which is not ready yet."""
        own = {f"KVBLEND_{name.upper()}": str(value) for name, value in self.settings.items()}
        extra = ["--max-num-seqs", "8", "--enforce-eager"]
        command = engine_command(str(model), port=self.port, dtype=dtype, max_model_len=2048, extra=extra)
        environment = {**engine_environment(control=self.control), **own, "OMP_NUM_THREADS": "1"}
        return start(command[command.index("-m") + 1 :], environment, out=self.log_path, err=self.log_path)

    def wait_ready(self, process: BaseProcess) -> None:
        """Until it answers."""
        wait_ready(process, f"{self.url}/health", log_path=self.log_path, timeout_s=START_TIMEOUT_S)


@contextmanager
def running_servers(servers: Sequence[VLLMServer], *, model: Path, dtype: str) -> Iterator[None]:
    """Start all, and end them with the block."""
    with ExitStack() as closing:
        processes = []
        for server in servers:
            processes.append(server.started(model, dtype))
            closing.callback(end, processes[-1])
        for server, process in zip(servers, processes, strict=True):
            server.wait_ready(process)
        yield


def end(process: BaseProcess) -> None:
    """End a server and what it has started."""
    assert process.pid is not None
    process.terminate()
    process.join(STOP_GRACE_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, SIGKILL)
    process.join()
