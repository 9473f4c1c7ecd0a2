"""Real vLLM servers with the connector, started side by side."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvblend.cli.engine import engine_command, engine_environment
from kvblend.cli.server_process import ServerProcess

__all__ = ["VLLMServer", "running_servers"]

START_TIMEOUT_S = 400.0


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

    def process(self, model: Path, dtype: str) -> ServerProcess:
        """Of a server of that model, which is not started yet."""
        own = {f"KVBLEND_{name.upper()}": str(value) for name, value in self.settings.items()}
        extra = ["--max-num-seqs", "8", "--enforce-eager"]
        return ServerProcess(
            f"vLLM at {self.port}",
            engine_command(str(model), port=self.port, dtype=dtype, max_model_len=2048, extra=extra),
            environment={**engine_environment(control=self.control), **own, "OMP_NUM_THREADS": "1"},
            log_path=self.log_path,
            health_url=f"{self.url}/health",
        )


@contextmanager
def running_servers(servers: Sequence[VLLMServer], *, model: Path, dtype: str) -> Iterator[None]:
    """Start all, and end them with the block."""
    with ExitStack() as closing:
        processes = [server.process(model, dtype) for server in servers]
        for process in processes:
            closing.callback(process.stop)
            process.start()
        for process in processes:
            process.wait_ready(timeout_s=START_TIMEOUT_S)
        yield
