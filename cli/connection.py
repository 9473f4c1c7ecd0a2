"""Options of the commands that talk to a running service."""

from typing import Annotated

import typer

from kvblend.core.settings import Settings
from kvblend.sdk import Client

__all__ = ["DEFAULT_URL", "URL", "APIKey", "connect"]

DEFAULT_URL = "http://127.0.0.1:8000"

URL = Annotated[str, typer.Option("--url", help="The service.")]
APIKey = Annotated[str | None, typer.Option("--api-key", help="Its API key; KVBLEND_API_KEY where not given.")]


def connect(url: str, api_key: str | None) -> Client:
    """A client of the service."""
    return Client(url, api_key=api_key or Settings().api_key)
