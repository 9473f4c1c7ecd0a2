"""Give every request its id, its place in a trace and its line in the log."""

import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvblend.api.request_context import RequestContext
from kvblend.api.tracing import Tracing

__all__ = ["RequestScope"]

logger = logging.getLogger(__name__)

PROBES = frozenset(["/healthz", "/readyz", "/metrics"])
"""Of which there is no line."""


class RequestScope:
    """ASGI middleware around all others. An answer's `x-request-id` is the caller's own, or one made here."""

    def __init__(self, app: ASGIApp, *, tracing: Tracing | None) -> None:
        self._app, self._tracing = app, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = RequestContext.of(Headers(scope=scope), self._tracing)
        status, began = 0, time.perf_counter()

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).setdefault("x-request-id", context.request_id)
            await send(message)

        with context.entered():
            try:
                await self._app(scope, receive, marked)
            finally:
                if scope["path"] not in PROBES:
                    took_ms = (time.perf_counter() - began) * 1000
                    what = {"method": scope["method"], "path": scope["path"], "status": status}
                    logger.info(
                        "%s %s %d %.0f ms", *what.values(), took_ms, extra={**what, "duration_ms": round(took_ms, 1)}
                    )
