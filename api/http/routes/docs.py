"""The service's own description: OpenAPI, and pages to read it."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import HTMLResponse

from kvblend.api.http.guarded_route import SECURITY_SCHEMES, GuardedRoute, needs

__all__ = ["router"]

router = APIRouter(include_in_schema=False, route_class=GuardedRoute)

SCHEMA_PATH = "/openapi.json"
TITLE = "kvblend"


@router.get(SCHEMA_PATH)
@needs("query", open_as="docs")
async def openapi(request: Request) -> dict[str, Any]:
    """The OpenAPI schema of all routes."""
    schema: dict[str, Any] = request.app.openapi()
    schema["components"]["securitySchemes"] = SECURITY_SCHEMES
    return schema


@router.get("/docs")
@needs("query", open_as="docs")
async def docs(request: Request) -> HTMLResponse:
    """The schema as a page that sends requests."""
    return get_swagger_ui_html(openapi_url=SCHEMA_PATH, title=TITLE)


@router.get("/redoc")
@needs("query", open_as="docs")
async def redoc(request: Request) -> HTMLResponse:
    """The schema as a page."""
    return get_redoc_html(openapi_url=SCHEMA_PATH, title=TITLE)
