"""Routes that say who may call them. The key is checked before anything is read of a request's body."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeVar

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from kvblend.api.access.admission import Work
from kvblend.api.access.caller import Caller, Rank
from kvblend.api.http.json_body import StrictRoute
from kvblend.api.service import service_of
from kvblend.core.errors import ForbiddenError, UnauthorizedError

__all__ = ["SECURITY_SCHEMES", "GuardedRoute", "needs", "open_to_all"]

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
NEED = "kvblend_need"
SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
"""OpenAPI's words for how a key is sent."""
SECURITY: list[dict[str, list[str]]] = [{name: []} for name in SECURITY_SCHEMES]


class Need(NamedTuple):
    """What a route asks of its caller. `rank`: None for anybody. `open_as`: the word by which the settings open it.
    `work`: what it takes one of the places for, if it does."""

    rank: Rank | None
    open_as: str | None = None
    work: Work | None = None


def needs(rank: Rank, *, open_as: str | None = None, work: Work | None = None) -> Callable[[Endpoint], Endpoint]:
    """Mark a route as one for callers of a rank, or of one that may more; for all, where the settings open it.

    `work`: as of `Need`.
    """

    def mark(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, NEED, Need(rank, open_as, work))
        return endpoint

    return mark


def open_to_all(endpoint: Endpoint) -> Endpoint:
    """Mark a route as one that anybody may call."""
    setattr(endpoint, NEED, Need(None))
    return endpoint


class GuardedRoute(StrictRoute):
    """A route marked by `needs` or `open_to_all`; one that is neither cannot be made.

    A `collection` in its path is the caller's own of that name: its function gets what the catalog calls it.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        need = getattr(endpoint, NEED, None)
        if need is None:
            raise TypeError(f"the route {path} does not say who may call it: mark it with needs or open_to_all")
        self.need: Need = need
        if need.rank is not None:
            options["openapi_extra"] = {**(options.get("openapi_extra") or {}), "security": SECURITY}
        super().__init__(path, endpoint, **options)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)  # which says so
            return
        request = Request(scope)
        caller, work = self._check(request), self.need.work
        if caller is None:
            await super().handle(scope, receive, send)
            return
        admission = service_of(request).admission
        with caller.asking(), nullcontext() if work is None else admission.place(work, caller.tenant):
            await super().handle(scope, receive, send)

    def _check(self, request: Request) -> Caller | None:
        """Note who calls; None where that is no matter. Raises UnauthorizedError, ForbiddenError, RateLimitedError."""
        if self.need.rank is None:
            return None
        service = service_of(request)
        caller = service.keys.find(_key_of(request))
        if caller is not None:
            request.state.caller = caller
            if "collection" in request.path_params:
                request.path_params["collection"] = caller.collection(request.path_params["collection"])
        if self.need.open_as is not None and self.need.open_as in service.settings.routes_without_key:
            return caller
        if caller is None:
            raise UnauthorizedError(
                "the request carries no valid API key: Authorization: Bearer <key>, or x-api-key: <key>"
            )
        if not caller.may(self.need.rank):
            raise ForbiddenError(_too_small(caller, self.need.rank, request))
        service.rate_limits.take(caller.tenant)
        return caller


def _key_of(request: Request) -> str | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return request.headers.get("x-api-key", "").strip() or None


def _too_small(caller: Caller, rank: Rank, request: Request) -> str:
    wanted = "the role admin and the default tenant" if rank == "operator" else f"the role {rank}"
    whose = f"the key {caller.key!r} has the role {caller.role}"
    if rank == "operator":
        whose += f" and the tenant {caller.tenant}"
    return f"{whose}; {request.method} {request.url.path} needs {wanted}"
