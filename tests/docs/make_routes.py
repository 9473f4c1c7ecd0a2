"""Makes docs/routes.md of the service's own OpenAPI schema: `make reference`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvblend.api import ServiceConfig, create_app
from kvblend.api.http.guarded_route import GuardedRoute
from kvblend.core.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "routes.md"

HEAD = """\
# Routes

Every route, the least [role](access.md) that may call it, and what it does. What a request may hold and how things go
together is in [api.md](api.md); the running service has the whole schema at `/openapi.json`, and at `/docs` as a page.
The console at `/` and its files are anybody's. This page is made of the code by `make reference`.
"""
SECTIONS = {
    "collections": "Collections, documents, jobs",
    "query": "Questions",
    "openai": "OpenAI's routes",
    "kv": "Passage KV",
    "quality": "Quality",
    "health": "Health",
}
"""By the tag of a route."""


def reference() -> str:
    """Return docs/routes.md as it should be."""
    # the service need not run for this
    app = create_app(ServiceConfig("none", "none", [("http://127.0.0.1:1", "ipc:///none")], Settings()))
    ranks = {
        (method.lower(), route.path_format): _role(route)
        for route in app.routes
        if isinstance(route, GuardedRoute)
        for method in route.methods
    }
    schema: dict[str, Any] = app.openapi()
    operations = [
        (operation["tags"][0], f"| `{method.upper()} {path}` | {ranks[method, path]} | {_does(operation)} |")
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]
    tags = list(dict.fromkeys(tag for tag, _ in operations))
    assert set(tags) == set(SECTIONS), tags
    return "\n".join([HEAD, *(line for tag in tags for line in _section(tag, operations))])


def _section(tag: str, operations: list[tuple[str, str]]) -> Iterator[str]:
    yield f"## {SECTIONS[tag]}\n"
    yield "| route | role | does |\n|---|---|---|"
    yield from (row for own, row in operations if own == tag)
    yield ""


def _role(route: GuardedRoute) -> str:
    if route.need.rank is None:
        return "anybody"
    opened = f", or anybody where `KVBLEND_OPEN_ROUTES` has `{route.need.open_as}`" if route.need.open_as else ""
    return f"`{route.need.rank}`{opened}"


def _does(operation: dict[str, Any]) -> str:
    return " ".join(operation["description"].split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(reference())
