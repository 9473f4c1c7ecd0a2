"""Makes docs/routes.md of the service's own OpenAPI schema: `make reference`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from kvblend.api import ServiceConfig, create_app
from kvblend.api.http.guarded_route import GuardedRoute
from kvblend.core.rest import DocumentCreate
from kvblend.core.settings import Settings
from tests.docs.schema_tables import default_of, field_rows, model_text, type_of, unexplained

PAGE = Path(__file__).parents[2] / "docs" / "routes.md"

HEAD = """\
# Routes

Every route, the least [role](access.md) that may call it, what it does, what it takes and what it answers; behind them
every [schema](#schemas), field by field. How things go together is in [api.md](api.md); the running service has all of
this at `/openapi.json`, and at `/docs` as a page. The console at `/` and its files are anybody's. This page is made of
the code by `make reference`.
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
SCHEMAS = """\
## Schemas

A request with a field that its schema has not is refused, but for OpenAI's two, whose other fields are vLLM's. Sizes of
texts are in characters. What is `null` by default need not be named.
"""
NOT_JSON = {
    "GET /v1/collections/{collection}/source": "the document's bytes",
    "GET /v1/collections/{collection}/jobs/{job_id}/events": "events of [IngestJob](#ingestjob)",
    "POST /v1/chat/completions": "OpenAI's, with `kvblend`: the report and the sources",
    "POST /v1/completions": "OpenAI's, with `kvblend`: the report and the sources",
    "GET /metrics": "text",
}
"""Answers that the schema has no model of."""


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
    operations = []
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            name = f"{method.upper()} {path}"
            cells = (f"`{name}`", ranks[method, path], _does(operation), _takes(operation), _answers(name, operation))
            operations.append((operation["tags"][0], f"| {' | '.join(cells)} |"))
    tags = list(dict.fromkeys(tag for tag, _ in operations))
    assert set(tags) == set(SECTIONS), tags
    models = {**schema["components"]["schemas"], "DocumentCreate": DocumentCreate.model_json_schema()}
    routes = (line for tag in tags for line in _section(tag, operations))
    return "\n".join([HEAD, *routes, SCHEMAS, *(line for name in sorted(models) for line in _schema(name, models))])


def _section(tag: str, operations: list[tuple[str, str]]) -> Iterator[str]:
    yield f"## {SECTIONS[tag]}\n"
    yield "| route | role | does | takes | answers |\n|---|---|---|---|---|"
    yield from (row for own, row in operations if own == tag)
    yield ""


def _role(route: GuardedRoute) -> str:
    if route.need.rank is None:
        return "anybody"
    opened = f", or anybody where `KVBLEND_OPEN_ROUTES` has `{route.need.open_as}`" if route.need.open_as else ""
    return f"`{route.need.rank}`{opened}"


def _does(operation: dict[str, Any]) -> str:
    return " ".join(operation["description"].split()).replace("|", "\\|")


def _takes(operation: dict[str, Any]) -> str:
    """The parameters behind a question mark, with type, bounds and default, and the body's schemas."""
    parts = []
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "query":
            default = default_of(parameter["schema"], is_required=parameter.get("required", False))
            parts.append(f"`?{parameter['name']}=` {type_of(parameter['schema'])}, {default}")
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        own = content["schema"]
        if media_type != "application/json":
            parts.append(f"`{media_type}`")
        elif own.get("title") == DocumentCreate.__name__:
            parts.append("[DocumentCreate](#documentcreate)")
        else:
            parts.append(type_of(own.get("oneOf", [own])[0]))
    return "; ".join(parts)


def _answers(name: str, operation: dict[str, Any]) -> str:
    """The status and schema of success."""
    status: str = next(iter(operation["responses"]))
    answer = operation["responses"][status]
    if name in NOT_JSON:
        return f"{status}: {NOT_JSON[name]}"
    if status == "204":
        return status
    return f"{status}: {type_of(answer['content']['application/json']['schema'])}"


def _schema(name: str, models: dict[str, Any]) -> Iterator[str]:
    model, schema = _models()[name], models[name]
    missing = unexplained(model, schema)
    assert not missing, f"{model.__module__}.{name}: what are {', '.join(sorted(missing))}?"
    yield f"### {name}\n\n{model_text(model)}\n"
    yield "| field | type | default | is |\n|---|---|---|---|"
    yield from field_rows(model, schema)
    yield ""


def _models() -> dict[str, type[BaseModel]]:
    """Every schema of kvblend's by its name."""
    found: dict[str, type[BaseModel]] = {}
    left = [BaseModel]
    while left:
        children = left.pop().__subclasses__()
        left += children
        found |= {each.__name__: each for each in children if each.__module__.startswith("kvblend.")}
    return found


if __name__ == "__main__":
    PAGE.write_text(reference())
