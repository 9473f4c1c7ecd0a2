"""`kvblend serve`: vLLM with the connector, and the REST service in front of it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from kvblend.cli.json_output import print_json
from kvblend.cli.log_format import configure_logging
from kvblend.cli.progress import status_progress
from kvblend.core.errors import InvalidRequestError

if TYPE_CHECKING:
    from kvblend.cli.server_process import ServerProcess

__all__ = ["serve"]

logger = logging.getLogger(__name__)

Host = Annotated[
    str, typer.Option(help="Where the service listens; vLLM itself listens on the loopback interface only.")
]

ENGINE_GRACE_S = 1.0
"""vLLM has nothing left to do by then: what it has stored is whole, and what it has not is made again."""


def serve(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="A model folder or Hugging Face name; `demo` is SmolLM2-135M, `qwen-coder` Qwen2.5-Coder-1.5B."
        ),
    ],
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The service's port.")] = 8000,
    engine_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="vLLM's own port, for what reads its metrics; else a free one.")
    ] = None,
    engine_url: Annotated[
        list[str] | None, typer.Option(help="A running vLLM server of this model, instead of a child; repeatable.")
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            help="Its control channel, one for each --engine-url; for a router's URL those of all its engines, with "
            "commas between them. KVBLEND_CONTROL."
        ),
    ] = None,
    home: Annotated[Path | None, typer.Option(help="Catalog, index and disk tier; KVBLEND_HOME.")] = None,
    embedding_model: Annotated[
        str | None, typer.Option(help="A sentence-transformers folder or name; all-MiniLM-L6-v2 where not given.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="vLLM's dtype; the model's where not given, on a CPU without bfloat16 float32.")
    ] = None,
    max_model_len: Annotated[int | None, typer.Option(min=1, help="vLLM's longest prompt and answer.")] = None,
    tensor_parallel_size: Annotated[int, typer.Option(min=1, help="GPUs, or on a CPU processes.")] = 1,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object once it listens: `url`, `model`, `home`.")
    ] = False,
) -> None:
    """Serve a model.

    Arguments after `--` go to vLLM as they are.
    """
    from kvblend.core.settings import Settings, TracingSettings

    if home is not None:
        os.environ["KVBLEND_HOME"] = str(home.absolute())
    settings, tracing = Settings(), TracingSettings()
    if engine_url and (context.args or dtype or max_model_len or tensor_parallel_size > 1 or engine_port):
        raise InvalidRequestError("a vLLM server that already runs takes no arguments of vLLM", param="engine-url")
    if engine_url:
        engines = _engines(engine_url, control or [settings.control])
    configure_logging(settings.log_format)
    from kvblend.cli.models import fetch_embedding_model, resolve_model
    from kvblend.cli.run_service import run_service
    from kvblend.cli.server_process import ServerProcess

    console = Console(stderr=True)
    say = logger.info if settings.log_format == "json" else partial(console.print, markup=False, highlight=False)
    model = resolve_model(model)
    embedding = embedding_model or ("" if settings.embedding_url else str(fetch_embedding_model()))

    def ready(url: str) -> None:
        say(f"kvblend serves {model} at {url}")
        if as_json:
            print_json({"url": url, "model": model, "home": str(settings.home_path)})

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, _exit)
    if engine_url:
        run_service(model, embedding, engines, settings=settings, host=host, port=port, ready=ready)
        return
    from kvblend.cli.engine import (
        default_dtype,
        engine_command,
        engine_environment,
        free_port,
        watching_arguments,
    )

    with tempfile.TemporaryDirectory(prefix="kvblend-") as folder:
        address = f"ipc://{folder}/control.sock"
        engine_port = engine_port or free_port()
        environment = engine_environment(control=address, tensor_parallel_size=tensor_parallel_size)
        if settings.engine_api_key is not None:
            environment["VLLM_API_KEY"] = settings.engine_api_key.get_secret_value()
        command = engine_command(
            model,
            port=engine_port,
            dtype=dtype or default_dtype(),
            max_model_len=max_model_len,
            tensor_parallel_size=tensor_parallel_size,
            extra=[*watching_arguments(settings, tracing, context.args), *context.args],
        )
        url = f"http://127.0.0.1:{engine_port}"
        engine = ServerProcess(
            "vLLM",
            command,
            environment=environment,
            log_path=settings.home_path / "logs" / f"vllm-{port}.log",
            health_url=f"{url}/health",
        )
        try:
            engine.start()
            if settings.log_format == "json":
                engine.wait_ready()
            else:
                _wait_ready(engine, console)
            engine.supervise(say)
            run_service(
                model, embedding, [(url, address)], settings=settings, host=host, port=port, ready=ready,
                at_end=lambda: engine.stop(grace_s=ENGINE_GRACE_S),
            )  # fmt: skip
        finally:
            engine.stop(grace_s=ENGINE_GRACE_S)


def _wait_ready(engine: ServerProcess, console: Console) -> None:
    """Wait behind a spinner that has the newest line of the log."""
    with status_progress(console) as progress:
        task = progress.add_task("starting vLLM")
        engine.wait_ready(tick=lambda line: progress.update(task, description=f"starting vLLM: {line[-90:]}"))


def _engines(urls: list[str], controls: list[str]) -> list[tuple[str, str]]:
    """Each vLLM server with its own control channel. Raises InvalidRequestError where one would have another's."""
    from kvblend.core.control import channel_addresses

    if len(controls) != len(urls):
        raise InvalidRequestError(
            f"{len(urls)} --engine-url and {len(controls)} --control: give one for each", param="control"
        )
    addresses = [each for control in controls for each in channel_addresses(control)]
    if "" in addresses:
        raise InvalidRequestError(f"an address of --control {' --control '.join(controls)} is empty", param="control")
    for name, values in (("engine-url", urls), ("control", addresses)):
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise InvalidRequestError(f"--{name} {twice} is given twice: each vLLM server has its own", param=name)
    return list(zip(urls, controls, strict=True))


def _exit(number: int, frame: object) -> None:
    """End on a signal by way of every `finally`: the service has not begun; once it has, it drains."""
    sys.exit(0)
