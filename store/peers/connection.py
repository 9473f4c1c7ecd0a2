"""A connection's requests, answered as they come."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress

from kvblend.core.errors import InvalidRequestError
from kvblend.store.peers.messages import Reply, Request, pack, receive, unpack

__all__ = ["Answer", "serve"]

log = logging.getLogger(__name__)

MAX_REQUESTS = 16
"""Of one connection at a time; what comes meanwhile waits in it."""

Answer = Callable[[Request, Hashable], Awaitable[Reply | None]]
"""Answers a request of a holder, who stands for the connection; None where no reply is due."""


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Answer, holder: Hashable) -> None:
    """Answer until the other end closes, or says what is no request, and what was asked until then is done."""
    room = asyncio.Semaphore(MAX_REQUESTS)
    tasks: set[asyncio.Task[None]] = set()

    async def reply_to(request: Request) -> None:
        try:
            reply = await _answered(request, answer, holder)
            if reply is not None:
                writer.write(pack(reply))
                with suppress(OSError):  # who asked is gone
                    await writer.drain()
        finally:
            room.release()

    try:
        while True:
            request = unpack(Request, await receive(reader))
            await room.acquire()
            task = asyncio.create_task(reply_to(request))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    except (OSError, EOFError) as error:
        log.debug("a connection ends: %s", error)
    finally:
        writer.close()
        if tasks:
            await asyncio.wait(tasks)


async def _answered(request: Request, answer: Answer, holder: Hashable) -> Reply | None:
    try:
        return await answer(request, holder)
    except (OSError, InvalidRequestError) as error:
        return Reply(id=request.id, error=f"{type(error).__name__}: {error}")
    except Exception as error:  # the process's edge: one request's fault is its own
        log.exception("a request of a peer failed")
        return Reply(id=request.id, error=f"{type(error).__name__}")
