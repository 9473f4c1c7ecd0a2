"""The REST service as an ASGI application."""

import hmac
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from starlette.requests import ClientDisconnect

import kvblend
from kvblend.api.body_limit import BodyLimit
from kvblend.api.disconnect import ClientGoneError
from kvblend.api.errors import install_error_handlers
from kvblend.api.request_count import RequestCount
from kvblend.api.routes import collections, health, kv, openai, query
from kvblend.api.service import ServiceConfig, running_service
from kvblend.core.errors import UnauthorizedError

__all__ = ["create_app"]

CLIENT_CLOSED_REQUEST = 499


def create_app(config: ServiceConfig) -> FastAPI:
    """The service of this config; it starts and stops with the application's lifespan."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with running_service(config) as service:
            app.state.service = service
            yield

    app = FastAPI(title="kvblend", version=kvblend.__version__, lifespan=lifespan)
    install_error_handlers(app)

    @app.exception_handler(ClientGoneError)
    @app.exception_handler(ClientDisconnect)  # in the midst of its body
    async def _client_gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    guarded = APIRouter(dependencies=[Depends(_key_check(config.settings.api_key))])
    for router in (collections.router, query.router, openai.router, kv.router):
        guarded.include_router(router)
    app.include_router(guarded)
    app.include_router(health.open_router)
    app.add_middleware(BodyLimit, max_document_bytes=config.settings.max_document_bytes)
    app.add_middleware(RequestCount)  # around the others: it sees every answer
    return app


def _key_check(api_key: str | None) -> Callable[[Request], None]:
    def check(request: Request) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if api_key is not None and not (
            scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), api_key.encode())
        ):
            raise UnauthorizedError("the request carries no valid API key: Authorization: Bearer <key>")

    return check
