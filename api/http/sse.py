"""Server-sent events: a stream whose failures before its first event are ordinary HTTP errors."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import Request
from sse_starlette import EventSourceResponse, ServerSentEvent

from kvblend.api.http.disconnect import unless_disconnected
from kvblend.api.http.drain import drain_of
from kvblend.api.http.errors import error_body
from kvblend.core.errors import KVBlendError

__all__ = ["Events", "event", "stream_events", "text_event"]

logger = logging.getLogger(__name__)

Events = AsyncGenerator[ServerSentEvent, None]


def event(data: Any, *, name: str | None = None) -> ServerSentEvent:
    """An event of JSON data."""
    return text_event(json.dumps(data, ensure_ascii=False, separators=(",", ":")), name=name)


def text_event(text: str, *, name: str | None = None) -> ServerSentEvent:
    """An event of text, with line ends as vLLM has them: clients split at no others."""
    return ServerSentEvent(data=text, event=name, sep="\n")


async def stream_events(request: Request, events: Events, *, error_event: str | None = None) -> EventSourceResponse:
    """Respond with the events. What fails before the first one is raised here; what fails later is the stream's last
    event, named `error_event`, an OpenAI-shaped error: also where the service ends before the stream does. A client
    that disconnects closes `events`."""
    drain = drain_of(request)
    first = await unless_disconnected(request, _first(events))

    async def rest() -> Events:
        async with aclosing(events):
            try:
                with drain.stream():
                    if first is not None:
                        yield first
                    async for item in events:
                        yield item
            except asyncio.CancelledError:
                cut_off = drain.cut_off()
                if cut_off is None:
                    raise
                yield event(error_body(cut_off).model_dump(), name=error_event)
            except Exception as error:  # the response has begun: this is the one place left to say it
                if not isinstance(error, KVBlendError):
                    logger.exception("a stream failed")
                yield event(error_body(error).model_dump(), name=error_event)

    return EventSourceResponse(rest(), sep="\n", headers={"Cache-Control": "no-store"})


async def _first(events: Events) -> ServerSentEvent | None:
    return await anext(events, None)
