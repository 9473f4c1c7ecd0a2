"""Run the REST service in this process until a signal ends it."""

import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from types import FrameType

import uvicorn

from kvblend.api import ServiceConfig, create_app
from kvblend.api.http.drain import Drain
from kvblend.api.request_context import add_ids
from kvblend.core.settings import Settings

__all__ = ["DrainingServer", "run_service"]

CLOSE_S = 1
END_AFTER_S = 8.0
"""Behind the first signal, whatever is still under way: all of it goes on after the next start."""


def run_service(
    model: str,
    embedding_model: str,
    engines: Sequence[tuple[str, str]],
    *,
    settings: Settings,
    host: str,
    port: int,
    ready: Callable[[str], None],
    at_end: Callable[[], None] = lambda: None,
) -> None:
    """Serve on host and port. `engines`: URL and control address of each vLLM.

    SIGINT or SIGTERM drains the service, and this returns. Where that takes too long, `at_end` is called, in another
    thread, and the process ends with status 0. `ready` is called with the service's URL once it listens there.
    """
    app = create_app(ServiceConfig(model=model, embedding_model=embedding_model, engines=engines, settings=settings))
    for handler in logging.getLogger().handlers:
        handler.addFilter(add_ids)
    config = uvicorn.Config(
        app, host=host, port=port, log_config=None, log_level="warning", timeout_graceful_shutdown=CLOSE_S
    )
    DrainingServer(config, app.state.drain, at_end, lambda: ready(f"http://{host}:{port}")).run()


class DrainingServer(uvicorn.Server):
    """Goes on listening while it drains, so that who comes then hears it; a second signal ends it at once."""

    def __init__(
        self,
        config: uvicorn.Config,
        drain: Drain,
        at_end: Callable[[], None],
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(config)
        self._drain, self._at_end, self._ready = drain, at_end, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._drain.is_draining:
            self.should_exit = self.force_exit = True
            return
        self._drain.begin()
        timer = threading.Timer(END_AFTER_S, self._end)
        timer.daemon = True
        timer.start()

    async def on_tick(self, counter: int) -> bool:
        self.should_exit = self.should_exit or self._drain.is_over()
        return await super().on_tick(counter)

    def _end(self) -> None:
        self._at_end()
        os._exit(0)
