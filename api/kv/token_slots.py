"""A bound on the tokens that are on their way at the same time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["TokenSlots", "TokenTurn"]


class TokenSlots:
    """Lets in as many as have `max_tokens` tokens together, in the order in which they came; one that has more goes
    alone."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens, self._used = max_tokens, 0
        self._waiting: deque[TokenTurn] = deque()

    def queue(self, turn: TokenTurn) -> None:
        """Let in a turn when there is room."""
        self._waiting.append(turn)
        self.admit()

    def admit(self) -> None:
        """Let in whoever there is room for; who was let in elsewhere, or gave up, waits no more."""
        while self._waiting:
            turn = self._waiting[0]
            is_waiting = turn.is_waiting
            if is_waiting and self._used and self._used + turn.num_tokens > self._max_tokens:
                return
            self._waiting.popleft()
            if is_waiting:
                self._used += turn.num_tokens
                turn.let_in(self)

    def leave(self, num_tokens: int) -> None:
        """Give back what a turn had taken."""
        self._used -= num_tokens
        self.admit()


class TokenTurn:
    """A wait for room for some tokens, in whichever of its slots has some first."""

    def __init__(self, num_tokens: int, slots: TokenSlots) -> None:
        """It waits from here on: go on to `taken` at once."""
        self.num_tokens = num_tokens
        self._slots = [slots]
        self._granted: asyncio.Future[TokenSlots] = asyncio.get_running_loop().create_future()
        slots.queue(self)

    def wait_in(self, slots: TokenSlots) -> None:
        """Wait in others, too."""
        self._slots.append(slots)
        slots.queue(self)

    @property
    def is_waiting(self) -> bool:
        return not self._granted.done()

    def let_in(self, slots: TokenSlots) -> None:
        """Called by the slots that have room."""
        self._granted.set_result(slots)

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Wait for room, and hold it in the block."""
        try:
            await self._granted
            yield
        finally:
            if self._granted.cancelled():
                for slots in self._slots:
                    slots.admit()
            else:
                self._granted.result().leave(self.num_tokens)
