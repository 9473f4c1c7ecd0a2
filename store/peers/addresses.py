"""Where peers listen."""

from typing import NamedTuple
from urllib.parse import urlsplit

from kvblend.core.errors import InvalidRequestError
from kvblend.core.settings import Settings

__all__ = ["SCHEME", "Address", "listen_address", "peer_addresses"]

SCHEME = "nixl"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Address(NamedTuple):
    """A host's name or number, and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def listen_address(settings: Settings) -> Address | None:
    """Where this host serves others; None where it does not.

    Raises InvalidRequestError where KVBLEND_PEER_ADDRESS is no address, or others can reach it without a token.
    """
    if settings.peer_address is None:
        return None
    address = parse_address(settings.peer_address, param="KVBLEND_PEER_ADDRESS")
    if settings.peer_token is None and address.host not in LOOPBACK:
        raise InvalidRequestError(
            f"KVBLEND_PEER_ADDRESS {address} can be reached by others: it needs a KVBLEND_PEER_TOKEN that all peers "
            f"share, or one of {', '.join(LOOPBACK)} as its host",
            param="KVBLEND_PEER_TOKEN",
        )
    return address


def peer_addresses(settings: Settings) -> list[Address]:
    """The peers that KVBLEND_REMOTE names.

    Raises InvalidRequestError where an address is none, or peers are named twice.
    """
    urls = [url for url in (settings.remote or "").split() if urlsplit(url).scheme == SCHEME]
    if len(urls) > 1:
        raise InvalidRequestError(
            f"KVBLEND_REMOTE names peers {len(urls)} times; write nixl://one:port,other:port once",
            param="KVBLEND_REMOTE",
        )
    texts = [text for url in urls for text in url.removeprefix(f"{SCHEME}://").rstrip("/").split(",")]
    return list(dict.fromkeys(parse_address(text, param="KVBLEND_REMOTE") for text in texts))


def parse_address(text: str, *, param: str) -> Address:
    """`host:port`, an IPv6 host in brackets. Raises InvalidRequestError where it is none."""
    host, colon, port = text.strip().rpartition(":")
    is_number = port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16
    if "@" in host:
        raise InvalidRequestError(
            f"{param} has credentials in an address: give the token as KVBLEND_PEER_TOKEN", param=param
        )
    if not colon or not host or not is_number or any(letter in host for letter in "/? "):
        raise InvalidRequestError(f"{param}'s {text!r} is no address host:port, the port 1 to 65535", param=param)
    return Address(host.removeprefix("[").removesuffix("]"), int(port))
