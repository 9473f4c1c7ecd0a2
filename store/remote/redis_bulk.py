"""A large value of a Redis server, received straight into the memory it is kept in."""

from typing import Any

from kvblend.store.buffers import byte_view, empty_extents

__all__ = ["MAX_OBJECT_BYTES", "ErrorReplyError", "get_bulk"]

MAX_OBJECT_BYTES = 512 << 20
"""Redis takes no larger value."""
FIRST_BYTES = 64
"""Received to learn how long a value is."""
LONGEST_LINE = 4096


class ErrorReplyError(Exception):
    """The server answered with an error, which was received whole: the connection can be used again."""


def get_bulk(connection: Any, key: str) -> memoryview | None:
    """Ask for a string over a connection of redis-py that speaks RESP 2, with nothing under way.

    redis-py's parsers copy a value twice; this is its own. Returns bytes whose first lies at a multiple of 4 KiB, or
    None where there is no such key. Raises ErrorReplyError, and OSError where the connection breaks.
    """
    connection.send_command("GET", key)
    received = connection._sock
    head = _some(received, FIRST_BYTES)
    while (end := head.find(b"\r\n")) < 0:
        if len(head) > LONGEST_LINE:
            raise OSError(f"an answer that starts with {head[:20]!r} is none of a Redis server")
        head += _some(received, FIRST_BYTES)
    line, rest = head[:end], head[end + 2 :]
    if line[:1] == b"-":
        raise ErrorReplyError(line[1:].decode(errors="replace"))
    if line == b"$-1":
        return None
    if line[:1] != b"$" or not line[1:].isdigit() or (num_bytes := int(line[1:])) > MAX_OBJECT_BYTES:
        raise OSError(f"an answer that starts with {line[:20]!r} is no string of a Redis server")
    whole = byte_view(empty_extents(1, num_bytes + 2)[0])  # with the line's end, which follows it
    whole[: len(rest)] = rest
    done = len(rest)
    while done < len(whole):
        count = received.recv_into(whole[done:])
        if count == 0:
            raise ConnectionResetError(f"the connection ended after {done} of {num_bytes} bytes")
        done += count
    return whole[:num_bytes]


def _some(received: Any, most: int) -> bytes:
    data: bytes = received.recv(most)
    if not data:
        raise ConnectionResetError("the connection ended before an answer")
    return data
