"""Python client of the REST service, synchronous and asynchronous; stands on core alone."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvblend.sdk.asynchronous.client import AsyncClient
    from kvblend.sdk.chat import BlendResult, ChatChunk, ChatCompletion
    from kvblend.sdk.routes import QueryEvent
    from kvblend.sdk.synchronous.client import Client

__all__ = ["AsyncClient", "BlendResult", "ChatChunk", "ChatCompletion", "Client", "QueryEvent"]

MODULES = {
    "AsyncClient": "kvblend.sdk.asynchronous.client",
    "BlendResult": "kvblend.sdk.chat",
    "ChatChunk": "kvblend.sdk.chat",
    "ChatCompletion": "kvblend.sdk.chat",
    "Client": "kvblend.sdk.synchronous.client",
    "QueryEvent": "kvblend.sdk.routes",
}


def __getattr__(name: str) -> Any:
    """Each name's module is imported at its first use: `kvblend --help` needs no HTTP, and `Client` no asyncio."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *MODULES])
