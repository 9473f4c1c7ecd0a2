"""The `kvblend` field of answers, which Haystack drops on the way from OpenAI's client to a message."""

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any

import openai

from kvblend.sdk.frameworks.openai_requests import blend_of

__all__ = ["TOLD", "tell_blends"]

TOLD: ContextVar[dict[str, Any] | None] = ContextVar("kvblend_told", default=None)
"""What the last answer of this thread or task told of its blend."""


def tell_blends(client: openai.OpenAI | openai.AsyncOpenAI) -> None:
    """Have a client's chat completions leave their `kvblend` field in `TOLD`."""
    for name in ("create", "parse"):
        call = getattr(client.chat.completions, name)
        setattr(client.chat.completions, name, _telling(call))


def _telling(call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    def told(**fields: Any) -> Any:
        answer = call(**fields)
        return _awaited(answer) if inspect.isawaitable(answer) else _noted(answer)

    return told


async def _awaited(answer: Any) -> Any:
    return _noted(await answer)


def _noted(answer: Any) -> Any:
    TOLD.set(blend_of(answer))
    return _NotedStream(answer) if isinstance(answer, openai.Stream | openai.AsyncStream) else answer


@dataclass(frozen=True)
class _NotedStream:
    """A stream of chunks, one of the last of which has the field."""

    stream: Any

    def __iter__(self) -> Iterator[Any]:
        for chunk in self.stream:
            TOLD.set(blend_of(chunk) or TOLD.get())
            yield chunk

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for chunk in self.stream:
            TOLD.set(blend_of(chunk) or TOLD.get())
            yield chunk

    async def close(self) -> None:
        await self.stream.close()
