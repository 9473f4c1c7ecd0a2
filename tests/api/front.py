"""A second service in front of the vLLM server that the tests' service runs, as `kvblend serve --engine-url` is."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from kvblend.api import ServiceConfig, create_app
from kvblend.cli.engine import free_port
from kvblend.core.settings import Settings
from tests.service import RunningService

__all__ = ["control_address", "front", "linked_model", "running", "serving"]


def control_address(service: RunningService) -> str:
    """The control channel of the service's vLLM server."""
    environment = Path(f"/proc/{service.engine_pid}/environ").read_bytes().split(b"\0")
    return next(entry.partition(b"=")[2].decode() for entry in environment if entry.startswith(b"KVBLEND_CONTROL="))


def linked_model(model: Path, folder: Path) -> Path:
    """The same model in a folder of its own, so that a calibration can lie beside it."""
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).symlink_to(file)
    return folder


@contextmanager
def front(service: RunningService, *, model: Path, embedding_model: Path, home: Path, **settings: Any) -> Iterator[str]:
    """Run it in a thread, on the same store; yields its URL."""
    address = control_address(service)
    config = ServiceConfig(
        model=str(model),
        embedding_model=embedding_model,
        engines=[(service.engine_url, address)],
        settings=Settings(
            home=home, cpu_path=service.cpu_path, disk_path=service.home / "kv", control=address, **settings
        ),
    )
    with running(config) as url:
        yield url


@contextmanager
def running(config: ServiceConfig) -> Iterator[str]:
    """A service in a thread of this process; yields its URL."""
    with serving(create_app(config)) as url:
        yield url


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Any routes, likewise."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, name="service")
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline, "the service did not start"
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
