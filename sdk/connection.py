"""How both clients reach the service."""

import ssl
from functools import cache
from typing import Any

import httpx

from kvblend.core.errors import InvalidRequestError

__all__ = ["http_options", "tls"]

CONNECT_S = 10.0


@cache
def tls() -> ssl.SSLContext:
    """Read the certificates once: it takes longer than a request."""
    return httpx.create_ssl_context()


def http_options(base_url: str, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    """Build what an httpx client, synchronous or not, is made with. `timeout_s` bounds each wait for the next bytes.

    Raises:
        InvalidRequestError: `base_url` is no address of HTTP.
    """
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise InvalidRequestError(f"{base_url!r} is no URL: {error}", param="base_url") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise InvalidRequestError(f"{base_url!r} is no URL that begins with http:// or https://", param="base_url")
    return {
        "base_url": url,
        "headers": {} if api_key is None else {"Authorization": f"Bearer {api_key}"},
        "timeout": httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_S)),
        "verify": tls(),
    }
