"""A bound on the tokens that are on their way at the same time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["TokenSlots"]


class TokenSlots:
    """Lets in as many as have `max_tokens` tokens together, in the order in which they came; one that has more goes
    alone."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens, self._used = max_tokens, 0
        self._turn = asyncio.Lock()
        self._left = asyncio.Event()

    @asynccontextmanager
    async def taken(self, num_tokens: int) -> AsyncIterator[None]:
        """Wait for room, and hold it in the block."""
        async with self._turn:
            while self._used and self._used + num_tokens > self._max_tokens:
                self._left.clear()
                await self._left.wait()
            self._used += num_tokens
        try:
            yield
        finally:
            self._used -= num_tokens
            self._left.set()
