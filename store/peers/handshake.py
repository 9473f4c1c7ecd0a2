"""How two peers show each other that they share a token, without sending it.

    server -> client    its nonce
    client -> server    its nonce, and a proof over both
    server -> client    its own proof, and what it lends: or that it refuses

A proof is an HMAC-SHA256 of both nonces, by the token, and of which end made it: none can be sent back or used twice.
What follows is neither encrypted nor signed: a token keeps strangers out of a network that is trusted, and no more.
"""

import asyncio
import hmac
import secrets
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from kvblend.store.peers.messages import NUM_BYTES, pack, receive, unpack

__all__ = ["Lent", "RefusedError", "greet", "meet"]

VERSION = 2
MAX_BYTES = 1 << 16
"""Of what a stranger may send."""
Nonce = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class RefusedError(PermissionError):
    """The two ends do not share a token."""


class Lent(BaseModel):
    """What a peer says of itself. hosts: names of its folders, by which it knows itself. metadata: its NIXL agent's, in
    base64. address, num_bytes: the memory that it lends from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hosts: Annotated[list[str], Field(max_length=8)]
    metadata: str
    address: Annotated[int, Field(ge=0, lt=1 << 64)]
    num_bytes: NUM_BYTES


class _Hello(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: int
    nonce: Nonce


class _Proof(BaseModel):
    model_config = ConfigDict(extra="forbid")

    nonce: Nonce
    proof: str


class _Welcome(BaseModel):
    model_config = ConfigDict(extra="forbid")

    proof: str | None = None
    lent: Lent | None = None


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str, lent: Lent) -> None:
    """The server's end. Raises RefusedError, once the client was told so, or OSError."""
    own = secrets.token_hex(32)
    writer.write(pack(_Hello(version=VERSION, nonce=own)))
    theirs = unpack(_Proof, await receive(reader, max_bytes=MAX_BYTES))
    is_known = hmac.compare_digest(theirs.proof, _proof(token, "client", own, theirs.nonce))
    welcome = _Welcome(proof=_proof(token, "server", own, theirs.nonce), lent=lent) if is_known else _Welcome()
    writer.write(pack(welcome))
    await writer.drain()
    if not is_known:
        raise RefusedError("a client has another token, or none")


async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str) -> Lent:
    """The client's end. Raises RefusedError or OSError."""
    hello = unpack(_Hello, await receive(reader, max_bytes=MAX_BYTES))
    if hello.version != VERSION:
        raise OSError(f"it speaks version {hello.version}, not {VERSION}")
    own = secrets.token_hex(32)
    writer.write(pack(_Proof(nonce=own, proof=_proof(token, "client", hello.nonce, own))))
    welcome = unpack(_Welcome, await receive(reader, max_bytes=MAX_BYTES))
    expected = _proof(token, "server", hello.nonce, own)
    if welcome.proof is None or welcome.lent is None or not hmac.compare_digest(welcome.proof, expected):
        raise RefusedError("it has another KVBLEND_PEER_TOKEN, or none")
    return welcome.lent


def _proof(token: str, end: Literal["client", "server"], server_nonce: str, client_nonce: str) -> str:
    return hmac.new(token.encode(), f"{end} {server_nonce} {client_nonce}".encode(), "sha256").hexdigest()
