"""The console: one page at `/`, and the files that it is made of."""

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from kvblend.api.http.guarded_route import GuardedRoute, open_to_all

__all__ = ["ConsoleFiles", "router"]

FOLDER = Path(__file__).parents[2] / "console"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",  # asked for anew and answered by 304: an upgrade shows at once
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
MEDIA_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}

router = APIRouter(include_in_schema=False, route_class=GuardedRoute)


@router.get("/")
@open_to_all
async def page() -> Response:
    """The page; it holds no data, and asks for a key where the service wants one."""
    return FileResponse(FOLDER / "index.html", headers=HEADERS, media_type="text/html")


class ConsoleFiles(StaticFiles):
    """The page's styles, scripts and icons; nothing else of the folder."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)

    async def get_response(self, path: str, scope: Scope) -> Response:
        media_type = MEDIA_TYPES.get(Path(path).suffix)
        response = await super().get_response(path if media_type else "", scope)
        response.headers.update(HEADERS)
        if media_type and response.status_code == 200:
            response.headers["Content-Type"] = f"{media_type}; charset=utf-8"  # whatever the machine's own table says
        return response
