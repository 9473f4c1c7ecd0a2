"""The vLLM server that is calibrated: one that runs, or a child with a store of its own."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from kvblend.cli.engine import default_dtype, engine_command, engine_environment, free_port
from kvblend.cli.progress import status_progress
from kvblend.cli.server_process import ServerProcess
from kvblend.core.settings import Settings

__all__ = ["CalibratedEngine", "child_engine"]


@dataclass(frozen=True)
class CalibratedEngine:
    """Where it answers, its control channel, and settings that name its store."""

    url: str
    control: str
    settings: Settings


@contextmanager
def child_engine(
    model: str,
    *,
    dtype: str | None,
    max_model_len: int,
    tensor_parallel_size: int,
    extra: Sequence[str],
    console: Console,
) -> Iterator[CalibratedEngine]:
    """Run a server as `kvblend serve` would, and end it with the block; its store goes with it.

    Raises EngineUnavailableError where it does not start, with the end of its log.
    """
    with tempfile.TemporaryDirectory(prefix="kvblend-calibrate-") as name:
        folder = Path(name)
        settings = Settings(cpu_bytes=0, disk_path=folder / "kv", control=f"ipc://{folder}/control.sock")
        port = free_port()
        environment = engine_environment(control=settings.control, tensor_parallel_size=tensor_parallel_size)
        server = ServerProcess(
            "vLLM",
            engine_command(
                model,
                port=port,
                dtype=dtype or default_dtype(),
                max_model_len=max_model_len,
                tensor_parallel_size=tensor_parallel_size,
                extra=["--enforce-eager", *extra],  # compiling would take longer than all that is measured
            ),
            environment={**environment, "KVBLEND_CPU_BYTES": "0", "KVBLEND_DISK_PATH": str(settings.disk_path)},
            log_path=folder / "vllm.log",
            health_url=f"http://127.0.0.1:{port}/health",
        )
        try:
            server.start()
            with status_progress(console) as progress:
                task = progress.add_task("starting vLLM")
                server.wait_ready(tick=lambda line: progress.update(task, description=f"starting vLLM: {line[-90:]}"))
            yield CalibratedEngine(f"http://127.0.0.1:{port}", settings.control, settings)
        finally:
            server.stop()
