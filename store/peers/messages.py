"""What peers, and the processes of one host, say to each other.

A message is its length, four bytes, and a JSON object. Requests and replies carry an `id`: replies may come in any
order. Nothing is ever unpickled.
"""

import asyncio
import socket
import struct
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

__all__ = ["MAX_NAMES", "Grant", "Reply", "Request", "pack", "receive", "receive_blocking", "unpack"]

MAX_BYTES = 8 << 20
MAX_NAMES = 4096
"""In one message; a file's name has up to 300 bytes."""
LENGTH = struct.Struct(">I")
NUM_BYTES = Annotated[int, Field(ge=0, lt=1 << 48)]

Message = TypeVar("Message", bound=BaseModel)


class Request(BaseModel):
    """`lookup`: which of `names` there are. `fetch`: lend their bytes, as many as there is room for. `release`: what
    was lent is not needed any more; no reply. `delete`: every file of `variants`. `variants`: the names of all files of
    `passage`. `check`: read `names` through, and put aside those that are corrupt. `claim`: let `holder` have the one
    of `names` for `seconds`, unless somebody has it. `give_back`: `holder` is done with it; asked of the peer process,
    `by` says who had decided.

    names: `PassageKVKey.file_name`; of a claim `Variant.name`. holder: a word of its own for each claim. variants:
    (model fingerprint, encode context, passage id) each. passage: (model fingerprint, passage id).
    wait_s: seconds until the answer is of no use.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: int
    op: Literal["lookup", "fetch", "release", "delete", "variants", "check", "claim", "give_back"]
    names: Annotated[list[str], Field(max_length=MAX_NAMES)] = []
    leases: Annotated[list[int], Field(max_length=MAX_NAMES)] = []
    variants: Annotated[list[tuple[str, str, str]], Field(max_length=MAX_NAMES)] = []
    passage: tuple[str, str] | None = None
    holder: Annotated[str, Field(max_length=64)] = ""
    seconds: Annotated[float, Field(ge=0, le=3600)] = 0.0
    by: str = ""
    wait_s: Annotated[float, Field(ge=0, le=60)] = 0.0


class Grant(BaseModel):
    """A file's bytes, lent: `[start, start + num_bytes)` of the lender's memory, until `lease` ends."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    lease: int
    start: NUM_BYTES
    num_bytes: NUM_BYTES


class Reply(BaseModel):
    """`names`: those found, put aside, or claimed. `grants` and `busy`: what is lent, and what there was no room for,
    if it is there; what is in neither is not. `count`: of files deleted. `unreached`: peers that did not answer, and
    why; for a lookup or a fetch, those of them that were asked. `by`: the peer that decided of a claim; "" where none
    did.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: int
    names: list[str] = []
    grants: list[Grant] = []
    busy: list[str] = []
    count: int = 0
    unreached: list[str] = []
    by: str = ""
    error: str | None = None


def pack(message: BaseModel) -> bytes:
    body = message.model_dump_json(exclude_defaults=True).encode()
    return LENGTH.pack(len(body)) + body


def unpack(kind: type[Message], body: bytes) -> Message:
    """Raises OSError where it is none."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise OSError(f"what came is no {kind.__name__}: {error.errors()[0]['msg']}") from None


async def receive(reader: asyncio.StreamReader, *, max_bytes: int = MAX_BYTES) -> bytes:
    """One message's body. Raises EOFError where the other end is closed, OSError where it is too long."""
    head = await reader.readexactly(LENGTH.size)
    return await reader.readexactly(_length(head, max_bytes))


def receive_blocking(connection: socket.socket) -> bytes:
    """As `receive`, within the socket's own time limit."""
    return _exactly(connection, _length(_exactly(connection, LENGTH.size), MAX_BYTES))


def _length(head: bytes, max_bytes: int) -> int:
    (length,) = LENGTH.unpack(head)
    if length > max_bytes:
        raise OSError(f"a message of {length} bytes is over {max_bytes}")
    return int(length)


def _exactly(connection: socket.socket, num_bytes: int) -> bytes:
    whole = bytearray()
    while len(whole) < num_bytes:
        part = connection.recv(num_bytes - len(whole))
        if not part:
            raise ConnectionError("the other end is closed")
        whole += part
    return bytes(whole)
