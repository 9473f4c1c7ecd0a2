"""What a host answers its peers, and the memory that they read it from."""

import asyncio
from collections.abc import Hashable

from kvblend.core.errors import CorruptPassageKVError
from kvblend.store.deadline import Deadline
from kvblend.store.folder.passage_file import PassageKVFile
from kvblend.store.key import Variant
from kvblend.store.peers.claims import PeerClaims
from kvblend.store.peers.handshake import Lent
from kvblend.store.peers.messages import Grant, Reply, Request
from kvblend.store.peers.nixl_memory import MemoryLender
from kvblend.store.peers.ring import Ring
from kvblend.store.peers.served_files import ServedFiles

__all__ = ["LEASE_S", "Lending"]

LEASE_S = 6.0
"""Longer than a peer goes on reading."""
MAX_OPEN = 64
"""Files of one request at a time."""
PACE_S, IDLE_S = 0.001, 0.05


class Lending:
    """Copies files to a ring, out of which peers read them: what they read is a file as it was when it was opened,
    whatever becomes of it. A range that is lent anew, since its reader took too long, fails that reader's checks."""

    def __init__(self, files: ServedFiles, *, ring_bytes: int, hosts: list[str]) -> None:
        self._files, self._claims = files, PeerClaims()
        self.ring = Ring(ring_bytes, lease_s=LEASE_S)
        self._memory = MemoryLender(self.ring)
        self.lent = Lent(
            hosts=hosts, metadata=self._memory.metadata, address=self.ring.address, num_bytes=self.ring.num_bytes
        )

    async def drive(self) -> None:
        """Let peers read, for ever."""
        while True:
            self._memory.progress()
            await asyncio.sleep(PACE_S if self.ring.is_lent else IDLE_S)

    async def answer(self, request: Request, holder: Hashable) -> Reply | None:
        files = self._files
        match request.op:
            case "lookup":
                return Reply(id=request.id, names=await asyncio.to_thread(files.find, request.names))
            case "fetch":
                return await self._lend(request, holder)
            case "release":
                for lease in request.leases:
                    self.ring.release(lease, holder)
                return None
            case "delete":
                variants = [Variant(*names) for names in request.variants]
                return Reply(id=request.id, count=await asyncio.to_thread(files.delete, variants))
            case "variants":
                names = await asyncio.to_thread(files.variants, *(request.passage or ("", "")))
                return Reply(id=request.id, names=names)
            case "check":
                return Reply(id=request.id, names=await asyncio.to_thread(files.check, request.names))
            case "claim" | "give_back":
                return self._decide(request, holder)

    def ended(self, holder: Hashable) -> None:
        """Take back what was lent to a connection that is closed, and what it had claimed."""
        self.ring.release_all(holder)
        self._claims.ended(holder)

    def _decide(self, request: Request, connection: Hashable) -> Reply:
        """A claim, or its end."""
        claimed = list[str]()
        for name in request.names:
            if request.op == "give_back":
                self._claims.give_back(name, holder=request.holder)
            elif self._claims.take(name, holder=request.holder, seconds=request.seconds, connection=connection):
                claimed.append(name)
        return Reply(id=request.id, names=claimed)

    async def _lend(self, request: Request, holder: Hashable) -> Reply:
        deadline = Deadline.after(request.wait_s)
        grants, busy = list[Grant](), list[str]()
        for first in range(0, len(request.names), MAX_OPEN):
            names = request.names[first : first + MAX_OPEN]
            if busy:
                busy += names
            else:
                await self._lend_some(names, holder, grants, busy, deadline)
        self._memory.progress()
        return Reply(id=request.id, grants=grants, busy=busy)

    async def _lend_some(
        self, names: list[str], holder: Hashable, grants: list[Grant], busy: list[str], deadline: Deadline
    ) -> None:
        files = await asyncio.to_thread(self._files.open, names)
        try:
            for name, file in files.items():
                # wait for room for the first alone: a peer reads and releases what it has before it asks again
                start = (
                    self.ring.take(file.num_bytes) if grants else await self.ring.take_soon(file.num_bytes, deadline)
                )
                if start is None:
                    busy.append(name)
                elif await self._copy(file, start):
                    lease = self.ring.lend(start, holder)
                    grants.append(Grant(name=name, lease=lease, start=start, num_bytes=file.num_bytes))
        finally:
            for file in files.values():
                file.close()

    async def _copy(self, file: PassageKVFile, start: int) -> bool:
        """Whether the whole file lies in the ring now; else its range is given back."""
        try:
            await asyncio.to_thread(file.read_file, self.ring.view(start, file.num_bytes))
        except CorruptPassageKVError:  # it was cut short behind the tier's back
            self.ring.give_back(start)
            return False
        return True
