"""The vLLM server that is calibrated: one that runs, or a child with a store of its own."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from kvblend.cli.engine import default_dtype, engine_command, engine_environment, free_port
from kvblend.cli.progress import status_progress
from kvblend.cli.server_process import ServerProcess
from kvblend.core.settings import Settings
from kvblend.eval.calibration.engine import CalibratedEngine, EngineFor

__all__ = ["child_engine", "child_of", "running_engine"]


ROOM_TOKENS = 64
"""Beyond the longest sequence, for what vLLM itself keeps free."""


def running_engine(url: str, control: str | None) -> EngineFor:
    """A server that runs; its store is this process's settings' own."""

    @contextmanager
    def engine(num_tokens: int) -> Iterator[CalibratedEngine]:
        settings = Settings()
        yield CalibratedEngine(url, control or settings.control, settings)

    return engine


def child_of(
    model: str, *, dtype: str | None, tensor_parallel_size: int, extra: Sequence[str], console: Console
) -> EngineFor:
    """A server of this process's own, with room for the prompts and no more."""
    return lambda num_tokens: child_engine(
        model,
        dtype=dtype,
        max_model_len=num_tokens + ROOM_TOKENS,
        tensor_parallel_size=tensor_parallel_size,
        extra=extra,
        console=console,
    )


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
