"""Threads that read large bodies: few, so that the event loop has its turn beside them."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["read_beside"]

AT_ONCE_BYTES = 64 << 10
"""A body that is read before anybody could notice."""

Value = TypeVar("Value")

_threads = ThreadPoolExecutor(2, thread_name_prefix="kvblend bodies")


async def read_beside(read: Callable[[bytes], Value], body: bytes) -> Value:
    """What `read` makes of a body, of a large one in a thread."""
    if len(body) <= AT_ONCE_BYTES:
        return read(body)
    return await asyncio.get_running_loop().run_in_executor(_threads, read, body)
