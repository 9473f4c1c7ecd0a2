"""Count every answer for the metrics, and answer what nobody expected."""

from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvblend.api.access.caller import Caller
from kvblend.api.http.errors import ERROR_CODE, error_response

__all__ = ["RequestCount"]


class RequestCount:
    """ASGI middleware around all others: notes route, method and status when an answer begins.

    An unexpected error is logged and answered by a bare 500, here and not by the framework, which would raise it again:
    the server then closes the connection under the client's next request. Where an answer has begun it is raised, since
    only the connection's end can say that the rest is missing.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                route = getattr(scope.get("route"), "path", "none")
                state = scope.get("state", {})
                scope["app"].state.service.metrics.request(
                    route=route,
                    method=scope["method"],
                    status=message["status"],
                    tenant=_tenant(state),
                    code=state.get(ERROR_CODE),
                )
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            if begun:
                raise
            await error_response(error)(scope, receive, noted)


def _tenant(state: Mapping[str, Any]) -> str:
    """Whose key the request carried, where that is known."""
    caller: Caller | None = state.get("caller")
    return "" if caller is None else caller.tenant
