"""Services that need no vLLM, over real HTTP: one whose vLLM is down, and one in front of a scripted engine."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from kvblend.api import ServiceConfig, create_app
from kvblend.cli.engine import free_port
from kvblend.core.settings import Settings
from tests.api.scripted_service import ScriptedService, scripted_service


@pytest.fixture(scope="session")
def lone_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The settings of `lone_url`."""
    folder = tmp_path_factory.mktemp("lone")
    return Settings(
        home=folder / "home",
        cpu_bytes=0,
        disk_bytes=1 << 30,
        control=f"ipc://{folder}/control.sock",
        api_key="secret",
        max_document_bytes=1 << 20,
    )


@pytest.fixture(scope="session")
def lone_url(lone_settings: Settings, demo_model_path: Path, embedding_model_path: Path) -> Iterator[str]:
    """The URL of a service that has no vLLM; its API key is `secret`."""
    config = ServiceConfig(
        model=str(demo_model_path),
        embedding_model=embedding_model_path,
        engines=[(f"http://127.0.0.1:{free_port()}", lone_settings.control)],
        settings=lone_settings,
    )
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(config), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, name="lone service")
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline, "the service did not start"
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def scripted(
    demo_model_path: Path, embedding_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ScriptedService]:
    """As `scripted_service` makes it where nothing is asked of it, one for each module."""
    folder = tmp_path_factory.mktemp("scripted")
    with scripted_service(folder, model=demo_model_path, embedding_model=embedding_model_path) as service:
        yield service
