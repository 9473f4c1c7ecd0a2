"""Options of the commands that talk to a running service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kvblend.core.errors import KVBlendError
from kvblend.sdk.default_url import DEFAULT_URL

if TYPE_CHECKING:
    from kvblend.sdk import Client

__all__ = ["URL", "APIKey", "Collection", "CollectionOption", "connect"]

COMPLETION_S = 2.0

URL = Annotated[
    str | None, typer.Option("--url", help=f"The service; else KVBLEND_URL, else {DEFAULT_URL}.", show_default=False)
]
APIKey = Annotated[str | None, typer.Option("--api-key", help="Its API key; KVBLEND_API_KEY where not given.")]


def connect(url: str | None, api_key: str | None, *, timeout_s: float = 600.0) -> Client:
    """A client of the service."""
    from kvblend.core.settings import Settings
    from kvblend.sdk import Client

    settings = Settings()
    return Client(url or settings.url or DEFAULT_URL, api_key=api_key or settings.api_key, timeout_s=timeout_s)


def collection_names(context: typer.Context, incomplete: str) -> list[str]:
    """What the shell offers for a collection; nothing where the service does not answer soon."""
    try:
        with connect(context.params.get("url"), context.params.get("api_key"), timeout_s=COMPLETION_S) as client:
            names = [collection.name for collection in client.list_collections()]
    except KVBlendError:
        return []
    return [name for name in names if name.startswith(incomplete)]


Collection = Annotated[str, typer.Argument(help="The collection.", autocompletion=collection_names)]
CollectionOption = Annotated[
    str, typer.Option("--collection", "-c", help="The collection.", autocompletion=collection_names)
]
