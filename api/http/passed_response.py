"""vLLM's answer on its way to a client."""

import asyncio
import json
from collections.abc import AsyncIterator

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from kvblend.api.engine.passthrough import PassedAnswer
from kvblend.api.http.drain import Drain, drain_of
from kvblend.api.http.errors import error_body
from kvblend.core.errors import KVBlendError

__all__ = ["PassedResponse"]


class PassedResponse(StreamingResponse):
    """The answer as it comes; however it ends, the request to vLLM ends with it.

    A stream of events that breaks off, or that the service does not live to the end of, has an error as its last event;
    another body has only its connection's end for that.
    """

    def __init__(self, request: Request, answer: PassedAnswer) -> None:
        body = _events(drain_of(request), answer.body) if answer.is_stream else answer.body
        super().__init__(body, status_code=answer.status)
        self.raw_headers = answer.headers
        self._held = answer.held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


async def _events(drain: Drain, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        with drain.stream():
            async for part in parts:
                yield part
    except asyncio.CancelledError:
        cut_off = drain.cut_off()
        if cut_off is None:
            raise
        yield _event(cut_off)
    except KVBlendError as error:
        yield _event(error)


def _event(error: KVBlendError) -> bytes:
    data = json.dumps(error_body(error).model_dump(), ensure_ascii=False, separators=(",", ":"))
    return f"data: {data}\n\n".encode()
