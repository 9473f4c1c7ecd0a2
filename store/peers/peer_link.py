"""A connection to one peer."""

import asyncio
import time
from itertools import count
from typing import Any

from kvblend.store.deadline import Deadline
from kvblend.store.peers.addresses import Address
from kvblend.store.peers.handshake import Lent, meet
from kvblend.store.peers.messages import Grant, Reply, Request, pack, receive, unpack
from kvblend.store.peers.nixl_memory import MemoryReader
from kvblend.store.peers.ring import Ring

__all__ = ["LONGEST_READ_S", "PeerLink"]

LONGEST_READ_S = 4.0
"""A read that takes longer is cut, and the connection with it."""
MAX_RING_BYTES = 1 << 34
EAGER_S, PACE_S = 0.01, 0.001


class PeerLink:
    """Questions over TCP, memory over NIXL. Everything raises OSError where the peer fails or is late; what is under
    way then fails too, once it is closed."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lent: Lent, ring: Ring) -> None:
        self._reader, self._writer = reader, writer
        self.lent, self._ring = lent, ring
        self._memory: MemoryReader | None = None
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._replies = asyncio.create_task(self._receive())
        self.heard_at = time.monotonic()
        self.is_closed = False

    @classmethod
    async def open(cls, address: Address, token: str, ring: Ring) -> "PeerLink":
        reader, writer = await asyncio.open_connection(*address)
        try:
            lent = await meet(reader, writer, token)
            if lent.num_bytes > MAX_RING_BYTES:
                raise OSError(f"it lends {lent.num_bytes} bytes, over {MAX_RING_BYTES}")
        except EOFError:
            writer.close()
            raise ConnectionError("it closed the connection") from None
        except BaseException:
            writer.close()
            raise
        return cls(reader, writer, lent, ring)

    async def ask(self, op: Any, deadline: Deadline, **fields: Any) -> Reply:
        """A `Request` and its reply. What a fetch lends that comes too late is released."""
        if self.is_closed:
            raise ConnectionError("the connection is closed")
        number = next(self._numbers)
        reply = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._writer.write(pack(Request(id=number, op=op, wait_s=deadline.remaining, **fields)))
        try:
            async with asyncio.timeout(deadline.remaining):
                answer: Reply = await reply
        except TimeoutError:
            if reply.done() and not reply.cancelled() and reply.exception() is None:  # it came at this very moment
                self._release([grant.lease for grant in reply.result().grants])
            raise
        finally:
            self._waiting.pop(number, None)
        if answer.error is not None:
            raise OSError(answer.error)
        return answer

    def tell(self, op: Any, **fields: Any) -> None:
        """A `Request` whose reply nobody waits for; nothing where the connection is closed."""
        if not self.is_closed:
            self._writer.write(pack(Request(id=0, op=op, **fields)))

    async def read(self, grant: Grant, deadline: Deadline) -> int | None:
        """Read what is lent to the ring, and release it; returns where it begins, None where there is no room.

        It goes on for `LONGEST_READ_S`, whatever the deadline: then nothing writes to the ring any more.
        """
        start = None
        try:
            start = await self._ring.take_soon(grant.num_bytes, Deadline.after(deadline.remaining / 2))
            if start is not None:
                await self._read(grant, start)
        except BaseException:
            self.close()  # nothing writes there any more
            if start is not None:
                self._ring.give_back(start)
            raise
        self._release([grant.lease])
        return start

    def prepare(self) -> MemoryReader:
        """Make ready to read: it takes some 100 ms. Raises OSError."""
        if self._memory is None:
            self._memory = MemoryReader(self._ring, self.lent.metadata)
        return self._memory

    def close(self) -> None:
        """Idempotent. Nothing writes to the ring any more once it returns."""
        self.is_closed = True
        if self._memory is not None:
            self._memory.close()
        self._replies.cancel()
        self._writer.close()
        for reply in self._waiting.values():
            if not reply.done():
                reply.set_exception(ConnectionError("the connection was closed"))

    async def _read(self, grant: Grant, start: int) -> None:
        if self.is_closed:
            raise ConnectionError("the connection is closed")
        if grant.start + grant.num_bytes > self.lent.num_bytes:
            raise OSError(f"it lends bytes up to {grant.start + grant.num_bytes} of {self.lent.num_bytes}")
        memory, began = self.prepare(), time.monotonic()
        number = memory.begin(start, self.lent.address + grant.start, grant.num_bytes)
        while not memory.is_done(number):
            spent = time.monotonic() - began
            if spent > LONGEST_READ_S:
                raise TimeoutError(f"a read of {grant.num_bytes} bytes was not done after {spent:.1f} s")
            await asyncio.sleep(0 if spent < EAGER_S else PACE_S)
        self.heard_at = time.monotonic()

    def _release(self, leases: list[int]) -> None:
        if leases:
            self.tell("release", leases=leases)

    async def _receive(self) -> None:
        try:
            while True:
                reply = unpack(Reply, await receive(self._reader))
                self.heard_at = time.monotonic()
                waiting = self._waiting.get(reply.id)
                if waiting is None or waiting.done():
                    self._release([grant.lease for grant in reply.grants])
                else:
                    waiting.set_result(reply)
        except (OSError, EOFError):
            self.close()
