"""Run the REST service in this process until a signal ends it."""

from collections.abc import Sequence

import uvicorn
from rich.console import Console

from kvblend.api import ServiceConfig, create_app
from kvblend.core.settings import Settings

__all__ = ["run_service"]

SHUTDOWN_GRACE_S = 10


def run_service(
    model: str,
    embedding_model: str,
    engines: Sequence[tuple[str, str]],
    *,
    settings: Settings,
    host: str,
    port: int,
    console: Console,
) -> None:
    """Serve on host and port; returns after SIGINT or SIGTERM. `engines`: URL and control address of each vLLM."""
    app = create_app(ServiceConfig(model=model, embedding_model=embedding_model, engines=engines, settings=settings))
    console.print(f"kvblend serves {model} at http://{host}:{port}", markup=False, highlight=False)
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=SHUTDOWN_GRACE_S)
    uvicorn.Server(config).run()
