"""Every answer is counted, those that are errors too, and an unexpected one leaves the connection as it is."""

import asyncio
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request

from kvblend.api.http.body_limit import BodyLimit
from kvblend.api.http.errors import install_error_handlers
from kvblend.api.http.request_count import RequestCount
from kvblend.api.metrics import Metrics
from kvblend.cli.engine import free_port
from kvblend.core.rest import ErrorResponse


@pytest.fixture(scope="module")
def failing_url() -> Iterator[str]:
    """A server with the service's middleware, a route that fails and one that does not."""
    app = FastAPI()
    install_error_handlers(app)
    app.add_middleware(BodyLimit, max_document_bytes=1024)
    app.add_middleware(RequestCount)
    app.state.service = SimpleNamespace(metrics=Metrics())

    @app.post("/fails")
    async def fails(request: Request) -> None:
        await request.body()
        raise RuntimeError("what nobody expected")

    @app.get("/works")
    async def works() -> dict[str, str]:
        await asyncio.sleep(0)
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics(request: Request) -> str:
        text: bytes = request.app.state.service.metrics.text()
        return text.decode()

    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical"))
    thread = threading.Thread(target=server.run, name="failing service")
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(30)


def test_an_unexpected_error_is_a_counted_500_on_a_connection_that_stays(failing_url: str) -> None:
    with httpx.Client(base_url=failing_url, limits=httpx.Limits(max_connections=1)) as client:
        for _ in range(5):
            response = client.post("/fails", content=b"x")
            assert response.status_code == 500
            assert ErrorResponse.model_validate(response.json()).error.code == "internal_error"
            first = response.extensions["network_stream"].get_extra_info("client_addr")
            again = client.get("/works")
            assert again.status_code == 200
            assert again.extensions["network_stream"].get_extra_info("client_addr") == first
        text = client.get("/metrics").json()
    assert 'kvblend_requests_total{method="POST",route="/fails",status="500"} 5.0' in text


def test_what_is_refused_by_its_length_is_counted(failing_url: str) -> None:
    with httpx.Client(base_url=failing_url) as client:
        assert client.post("/fails", content=b"x" * (1 << 20)).status_code == 413
        assert 'method="POST",route="none",status="413"} 1.0' in client.get("/metrics").json()
