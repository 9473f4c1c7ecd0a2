"""Memory that is lent in parts, each for a while."""

import asyncio
import mmap
import os
import time
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import count

import torch

from kvblend.store.buffers import byte_view
from kvblend.store.deadline import Deadline
from kvblend.store.gpu.extent_allocator import ExtentAllocator

__all__ = ["Ring"]


@dataclass(frozen=True)
class _Lease:
    start: int
    holder: Hashable
    until: float


class Ring:
    """`num_bytes` of memory at a fixed address, of which only what was ever used is taken from the machine.

    What is taken is given back, or lent to a `holder`: then it comes back when the holder releases it, is gone, or its
    time is up, whichever is first. For one thread, an event loop's.
    """

    def __init__(self, num_bytes: int, *, lease_s: float) -> None:
        self.num_bytes, self._lease_s = num_bytes, lease_s
        self.fd = os.memfd_create("kvblend-peers", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, num_bytes)
        self._bytes = torch.frombuffer(mmap.mmap(self.fd, num_bytes), dtype=torch.uint8)
        self._extents = ExtentAllocator(num_bytes)
        self._leases: dict[int, _Lease] = {}
        self._numbers = count(1)
        self._freed = asyncio.Event()

    @property
    def address(self) -> int:
        return self._bytes.data_ptr()

    @property
    def used_bytes(self) -> int:
        return self._extents.used_bytes

    @property
    def is_lent(self) -> bool:
        return bool(self._leases)

    def view(self, start: int, num_bytes: int) -> memoryview:
        return byte_view(self._bytes[start : start + num_bytes])

    def take(self, num_bytes: int) -> int | None:
        """Where a range of the ring begins that is now the caller's; None where there is no room."""
        self._expire()
        return self._extents.allocate(num_bytes)

    async def take_soon(self, num_bytes: int, deadline: Deadline) -> int | None:
        """As `take`, once there is room; None at the deadline, and where there never will be."""
        while (start := self.take(num_bytes)) is None:
            if num_bytes > self.num_bytes or deadline.passed:
                return None
            self._freed.clear()
            try:
                async with asyncio.timeout(min(deadline.remaining, self._lease_s)):
                    await self._freed.wait()
            except TimeoutError:
                continue
        return start

    def give_back(self, start: int) -> None:
        self._extents.free(start)
        self._freed.set()

    def lend(self, start: int, holder: Hashable) -> int:
        """Lend what was taken; returns the lease's number."""
        number = next(self._numbers)
        self._leases[number] = _Lease(start, holder, time.monotonic() + self._lease_s)
        return number

    def release(self, number: int, holder: Hashable) -> None:
        """End a lease, if it is the holder's and not over already."""
        lease = self._leases.get(number)
        if lease is not None and lease.holder == holder:
            self._end(number)

    def release_all(self, holder: Hashable) -> None:
        for number in [number for number, lease in self._leases.items() if lease.holder == holder]:
            self._end(number)

    def check_integrity(self) -> None:
        """Raise AssertionError where an invariant is broken: for tests."""
        self._extents.check_integrity()

    def close(self) -> None:
        os.close(self.fd)

    def _expire(self) -> None:
        now = time.monotonic()
        for number in [number for number, lease in self._leases.items() if lease.until <= now]:
            self._end(number)

    def _end(self, number: int) -> None:
        self.give_back(self._leases.pop(number).start)
