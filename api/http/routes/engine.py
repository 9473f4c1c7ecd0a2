"""vLLM's own routes: what the service has no part in passes through."""

from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from kvblend.api.access.caller import caller_of
from kvblend.api.engine.passthrough import PassedRequest
from kvblend.api.http.body_threads import read_beside
from kvblend.api.http.disconnect import unless_disconnected
from kvblend.api.http.guarded_route import GuardedRoute, needs
from kvblend.api.http.passed_body import passed_body
from kvblend.api.http.passed_response import PassedResponse
from kvblend.api.service import service_of
from kvblend.core.errors import ForbiddenError, InvalidRequestError

__all__ = ["admin_router", "pass_on", "router"]

READ = {
    "/v1/models",
    "/v1/responses/{response_id}",  # of whoever knows its id, which nobody can guess
    "/tokenizer_info",
    "/ping",
    "/health",
    "/version",
    "/load",
}
TOLD = {
    "/v1/chat/completions/render",
    "/v1/chat/completions/derender",
    "/v1/completions/render",
    "/v1/completions/derender",
    "/v1/responses/render",
    "/v1/responses/{response_id}/cancel",
    "/v1/messages/count_tokens",
    "/v1/messages/render",
    "/cohere/v2/chat/render",
    "/tokenize",
    "/detokenize",
    "/ping",
}
"""No model runs for them, so that there is nothing of theirs in its prefix cache."""
ASKED = {
    "/v1/chat/completions/batch",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
    "/pooling",
    "/classify",
    "/score",
    "/v1/score",
    "/rerank",
    "/v1/rerank",
    "/v2/rerank",
    "/generative_scoring",
    "/v1/systemone",
    "/invocations",
}
"""A model runs for them, and its prefix cache keeps their prompts apart by `cache_salt`."""
UNSALTED = {
    "/cohere/v2/chat",
    "/v2/embed",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
}
"""A model runs for them, and they know no `cache_salt`: their times would tell one tenant what another asked."""
# Everything else of vLLM's is an administrator's: it stops the engine, loads weights into it, empties its cache, or
# takes orders in places that are not looked into.

ANSWERS = ("/v1/chat/completions", "/v1/completions")
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

router = APIRouter(include_in_schema=False, route_class=GuardedRoute)
admin_router = APIRouter(include_in_schema=False, route_class=GuardedRoute)
"""Every other route of vLLM, behind all of the service's own."""


async def pass_on(request: Request, *, takes_salt: bool = False, fields: dict[str, Any] | None = None) -> Response:
    """Send a request to vLLM as it came, and its answer back: status, headers and body.

    Files are passed while they arrive. JSON is read first: it holds no orders to the connector, and its tenant's salt
    where the route `takes_salt`. `fields`: what it has, where it has been read. Raises InvalidRequestError where a body
    cannot have a salt.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    is_form = kind == "multipart/form-data"
    salt = _salt(request) if takes_salt else None
    if salt is not None and not _is_json(kind):
        raise InvalidRequestError(f"{request.url.path} takes a JSON body, not {kind!r:.80}")
    passed = PassedRequest(
        method=request.method,
        target=_target(request.scope),
        headers=request.headers.raw,
        content=request.stream() if is_form else await _body(request, kind, salt, fields),
        is_answer=request.url.path in ANSWERS,
    )
    sending = service_of(request).passthrough.send(passed)
    answer = await (sending if is_form else unless_disconnected(request, sending))
    return PassedResponse(request, answer)


@needs("query")
async def _read(request: Request) -> Response:
    return await pass_on(request)


@needs("query", work="lookup")
async def _tell(request: Request) -> Response:
    return await pass_on(request)


@needs("query", work="answer")
async def _ask(request: Request) -> Response:
    return await pass_on(request, takes_salt=True)


@needs("query", work="answer")
async def _ask_unsalted(request: Request) -> Response:
    if _salt(request) is not None:
        tenant, path = caller_of(request).tenant, request.url.path
        raise ForbiddenError(f"{path} is not for the tenant {tenant!r}: vLLM cannot keep it apart from other tenants")
    return await pass_on(request)


@admin_router.api_route("/{path:path}", methods=METHODS)
@needs("operator")
async def _administer(request: Request) -> Response:
    return await pass_on(request)


for paths, endpoint, methods in (
    (READ, _read, ["GET", "HEAD"]),
    (TOLD, _tell, ["POST"]),
    (ASKED, _ask, ["POST"]),
    (UNSALTED, _ask_unsalted, ["POST"]),
):
    for each in sorted(paths):
        router.add_api_route(each, endpoint, methods=methods)


def _salt(request: Request) -> str | None:
    return service_of(request).collections.salts.of(caller_of(request).tenant)


async def _body(request: Request, kind: str, salt: str | None, fields: dict[str, Any] | None) -> bytes:
    body = await request.body()
    if not _is_json(kind) or not (body or salt is not None):
        return body
    return await read_beside(partial(passed_body, salt=salt, fields=fields), body)


def _is_json(kind: str) -> bool:
    return kind == "application/json" or kind.endswith("+json")


def _target(scope: Any) -> bytes:
    """Path and query as the client wrote them."""
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    query: bytes = scope["query_string"]
    return path.partition(b"?")[0] + (b"?" + query if query else b"")
