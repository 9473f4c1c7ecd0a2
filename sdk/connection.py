"""How both clients reach the service."""

import ssl
from functools import cache
from typing import Any

import httpx

__all__ = ["DEFAULT_URL", "http_options"]

DEFAULT_URL = "http://127.0.0.1:8000"
CONNECT_S = 10.0


@cache
def _tls() -> ssl.SSLContext:
    """Read the certificates once: it takes longer than a request."""
    return httpx.create_ssl_context()


def http_options(base_url: str, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    """Build what an httpx client, synchronous or not, is made with. `timeout_s` bounds each wait for the next bytes."""
    return {
        "base_url": base_url,
        "headers": {} if api_key is None else {"Authorization": f"Bearer {api_key}"},
        "timeout": httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_S)),
        "verify": _tls(),
    }
