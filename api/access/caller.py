"""Who asks: the tenant and the role of the key that a request carries."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, cast

from fastapi import Request

from kvblend.core.collection_name import DEFAULT_TENANT, collection_key
from kvblend.core.errors import NotFoundError

__all__ = ["Caller", "Rank", "Role", "asking_tenant", "caller_of"]

Role = Literal["query", "ingest", "admin"]
Rank = Role | Literal["operator"]
"""What a route asks for. The operator is an admin of the default tenant."""
RANKS: tuple[Rank, ...] = ("query", "ingest", "admin", "operator")
"""Each may what those before it may."""


@dataclass(frozen=True)
class Caller:
    """`key` is the name of the key, never the key itself."""

    key: str
    tenant: str = DEFAULT_TENANT
    role: Role = "admin"

    def may(self, rank: Rank) -> bool:
        """Whether the caller has this rank, or one that may more."""
        own: Rank = "operator" if self.is_operator else self.role
        return RANKS.index(own) >= RANKS.index(rank)

    @property
    def is_operator(self) -> bool:
        """Whether the caller runs the service, and may see what is all tenants'."""
        return self.role == "admin" and self.tenant == DEFAULT_TENANT

    def collection(self, name: str) -> str:
        """What the catalog calls the caller's collection of this name.

        An operator names another tenant's as `<tenant>/<name>`. Raises NotFoundError for such a name of anybody else.
        """
        if "/" in name and not self.is_operator:
            raise NotFoundError(f"there is no collection {name!r}", param="collection")
        return name if "/" in name else collection_key(self.tenant, name)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Be the one that asks, in the block and in the tasks and threads that it begins."""
        token = _asking.set(self.tenant)
        try:
            yield
        finally:
            _asking.reset(token)


_asking: ContextVar[str] = ContextVar("kvblend_tenant", default=DEFAULT_TENANT)


def asking_tenant() -> str:
    """The tenant whose request is being answered; the default one where the service asks for itself."""
    return _asking.get()


def caller_of(request: Request) -> Caller:
    """Whoever sent this request, to a route that is guarded."""
    return cast(Caller, request.state.caller)
