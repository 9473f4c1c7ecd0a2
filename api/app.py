"""The REST service as an ASGI application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

import kvblend
from kvblend.api.http.body_limit import BodyLimit
from kvblend.api.http.disconnect import ClientGoneError
from kvblend.api.http.drain import Drain, DrainGate
from kvblend.api.http.errors import install_error_handlers
from kvblend.api.http.request_count import RequestCount
from kvblend.api.http.request_scope import RequestScope
from kvblend.api.http.routes import collections, console, docs, engine, health, kv, openai, quality, query
from kvblend.api.running_service import running_service
from kvblend.api.service import ServiceConfig
from kvblend.api.tracing import Tracing
from kvblend.core.built_schemas import build_schemas
from kvblend.core.rest import ErrorResponse

__all__ = ["create_app"]

CLIENT_CLOSED_REQUEST = 499


def create_app(config: ServiceConfig) -> FastAPI:
    """The service of this config; it starts and stops with the application's lifespan. `app.state.drain` leads it to
    its end."""

    build_schemas()
    drain, tracing = Drain(), Tracing.of(config.tracing)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with running_service(config, tracing) as service:
            app.state.service = service
            drain.on_begin = service.ingest.stop
            yield

    app = FastAPI(
        title="kvblend",
        version=kvblend.__version__,
        lifespan=lifespan,
        openapi_url=None,  # these routes are guarded as all others are
        docs_url=None,
        redoc_url=None,
        responses={"4XX": {"model": ErrorResponse, "description": "The request is refused"}},
    )
    app.state.drain = drain
    install_error_handlers(app)

    @app.exception_handler(ClientGoneError)
    @app.exception_handler(ClientDisconnect)  # in the midst of its body
    async def _client_gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    for routes in (collections, query, openai, kv, quality, health, docs, console, engine):
        app.include_router(routes.router)
    app.mount("/console", console.ConsoleFiles(), name="console")
    if config.settings.engine_admin:
        app.include_router(engine.admin_router)  # it takes whatever path comes, so it is the last one
    app.add_middleware(BodyLimit, max_document_bytes=config.settings.max_document_bytes)
    app.add_middleware(DrainGate, drain=drain)
    app.add_middleware(RequestCount)  # around the others: it sees every answer
    if config.settings.cors_origins is not None:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.settings.cors_origins.split(),
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["*"],  # a key is one that the page knows: no browser adds it by itself
            expose_headers=["x-request-id", "retry-after"],
        )
    app.add_middleware(RequestScope, tracing=tracing)
    if tracing is not None:
        tracing.watch_routes(app)
    return app
