"""Count every answered request for the metrics."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["RequestCount"]


class RequestCount:
    """ASGI middleware: notes route, method and status when a response begins."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                scope["app"].state.service.metrics.request(
                    route=route, method=scope["method"], status=message["status"]
                )
            await send(message)

        await self._app(scope, receive, noted)
