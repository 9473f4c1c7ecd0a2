"""How many requests a vLLM server works on for this service, and when that begins and ends."""

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["Load"]

Result = TypeVar("Result")


class Load:
    """Counts requests in flight. Not thread-safe: of one event loop."""

    def __init__(self) -> None:
        self.num_requests = 0
        self._busy = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count one request while the block runs."""
        self.num_requests += 1
        self._idle.clear()
        self._busy.set()
        try:
            yield
        finally:
            self.num_requests -= 1
            if not self.num_requests:
                self._busy.clear()
                self._idle.set()

    async def idle_for(self, idle_s: float) -> None:
        """Return once there has been no request for `idle_s` seconds."""
        while True:
            await self._idle.wait()
            try:
                await asyncio.wait_for(self._busy.wait(), idle_s)
            except TimeoutError:
                return

    async def while_idle(self, work: Coroutine[Any, Any, Result]) -> Result | None:
        """Return the work's result; None where a request came first, which cancels the work."""
        task = asyncio.create_task(work)
        busy = asyncio.create_task(self._busy.wait())
        try:
            await asyncio.wait((task, busy), return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            for each in (task, busy):
                each.cancel()
            await asyncio.gather(task, busy, return_exceptions=True)
