"""The service's way to its end: no new requests, time for those that run, and a word to those that take longer."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvblend.api.http.errors import error_response
from kvblend.core.errors import ShuttingDownError

__all__ = ["LIMIT_S", "Drain", "DrainGate", "drain_of"]

LIMIT_S = 6.0
"""For which running answers may go on."""
LAST_WORD_S = 1.0
"""In which those that are cut off say so."""
STILL_OPEN = ("/healthz", "/metrics")


class Drain:
    """Whether the service is on its way to its end, and what still runs. Of one event loop, but for `begin`."""

    def __init__(self) -> None:
        self.on_begin: Callable[[], None] = lambda: None
        """Called once when it begins: what runs beside the requests stops."""
        self.is_cut = False
        """Whether the time of what runs is over."""
        self._begun_at: float | None = None
        self._was_told = False
        self._num_requests = 0
        self._unanswered: set[asyncio.Task[object]] = set()
        self._streams: set[asyncio.Task[object]] = set()

    @property
    def is_draining(self) -> bool:
        return self._begun_at is not None

    def begin(self) -> None:
        """Take no new requests. May be called by a signal's handler."""
        self._begun_at = self._begun_at or time.monotonic()

    def is_over(self) -> bool:
        """Whether the service may end now: to be asked again and again, since it cuts off what takes too long."""
        if self._begun_at is None:
            return False
        if not self._was_told:
            self._was_told = True
            self.on_begin()
        since_s = time.monotonic() - self._begun_at
        if since_s > LIMIT_S and not self.is_cut:
            self.is_cut = True
            for task in self._unanswered | self._streams:
                task.cancel()
        return not self._num_requests or since_s > LIMIT_S + LAST_WORD_S

    @contextmanager
    def request(self) -> Iterator[Callable[[], None]]:
        """Count a request that this task answers; gives what says that the answer has begun. The task is cancelled
        where the service ends before that."""
        task = _this_task()
        self._num_requests += 1
        self._unanswered.add(task)
        try:
            yield lambda: self._unanswered.discard(task)
        finally:
            self._num_requests -= 1
            self._unanswered.discard(task)

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Let this task, which sends a stream, be cancelled where the service ends before it: see `cut_off`."""
        task = _this_task()
        self._streams.add(task)
        try:
            yield
        finally:
            self._streams.discard(task)

    def cut_off(self) -> ShuttingDownError | None:
        """What to say in a task that was cancelled just now, which then goes on; None where it was for something
        else, and is to end."""
        if not self.is_cut:
            return None
        _this_task().uncancel()
        return ShuttingDownError("the service is shutting down, and the answer took longer than it may")


class DrainGate:
    """ASGI middleware: 503 for requests that come when the service is on its way to its end, or are cut off then."""

    def __init__(self, app: ASGIApp, *, drain: Drain) -> None:
        self._app, self._drain = app, drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in STILL_OPEN:
            await self._app(scope, receive, send)
            return
        if self._drain.is_draining:
            await error_response(ShuttingDownError("the service is shutting down"))(scope, receive, send)
            return
        begun = False
        with self._drain.request() as has_begun:

            async def noted(message: Message) -> None:
                nonlocal begun
                begun = True
                has_begun()
                await send(message)

            try:
                await self._app(scope, receive, noted)
            except asyncio.CancelledError:
                error = None if begun else self._drain.cut_off()
                if error is None:
                    raise
                await error_response(error)(scope, receive, send)


def drain_of(request: Request) -> Drain:
    """That of the service that answers this request."""
    return cast(Drain, request.app.state.drain)


def _this_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None
    return task
