"""One peer, which may be slow, dead, or this host itself."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from kvblend.core.breaker import CircuitBreaker
from kvblend.store.deadline import Deadline
from kvblend.store.peers.addresses import Address
from kvblend.store.peers.messages import Grant, Reply
from kvblend.store.peers.peer_link import PeerLink
from kvblend.store.peers.ring import Ring

__all__ = ["Fetched", "NotAskedError", "Peer"]

log = logging.getLogger(__name__)

MAX_FAILURES = 3
REOPEN_S, LONGEST_PAUSE_S = 0.5, 8.0
WARM_UP_S = 5.0
TRY_S = 1.0
LOOK_EVERY_S = 0.1


class NotAskedError(OSError):
    """The circuit breaker answered in the peer's place."""


@dataclass
class Fetched:
    """came: where each file begins in the ring, which is the caller's to give back, and its size. missing: what the
    peer does not have. What is in neither was late."""

    came: dict[str, tuple[int, int]] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)


class Peer:
    """Asks one peer, by a connection that is made when it is needed and thrown away when it fails.

    After `MAX_FAILURES` calls in a row that failed or were late a circuit breaker answers in its place, until the peer
    does again: it is tried now and then, when nobody waits. Calls raise OSError then, and where the peer fails or is
    late.
    """

    def __init__(self, address: Address, token: str, ring: Ring, *, own_hosts: Collection[str]) -> None:
        self.address, self._token, self._ring, self._own_hosts = address, token, ring, set(own_hosts)
        self._breaker = CircuitBreaker(
            f"peer at {address}", max_failures=MAX_FAILURES, pause_s=REOPEN_S, longest_pause_s=LONGEST_PAUSE_S
        )
        self._recovery: asyncio.Task[None] | None = None
        self._link: PeerLink | None = None
        self._linking = asyncio.Lock()

    def __str__(self) -> str:
        return str(self.address)

    @property
    def is_failing(self) -> bool:
        return self._breaker.is_open

    async def warm_up(self) -> None:
        """Connect before anybody waits for it, if the peer is there."""
        try:
            link = await self._linked(Deadline.after(WARM_UP_S))
        except OSError as error:
            log.debug("the peer at %s is not there yet: %s", self.address, error)
            return
        if not self._is_own(link):
            link.prepare()

    async def lookup(self, names: list[str], deadline: Deadline) -> list[str]:
        return (await self._ask("lookup", deadline, names=names)).names

    async def variants(self, passage: tuple[str, str], deadline: Deadline) -> list[str]:
        return (await self._ask("variants", deadline, passage=passage)).names

    async def check(self, names: list[str], deadline: Deadline) -> list[str]:
        return (await self._ask("check", deadline, names=names)).names

    async def delete(self, variants: list[tuple[str, str, str]], deadline: Deadline) -> int:
        """Asked of this host, too, so that it forgets what was deleted as its peers do."""
        return (await self._ask("delete", deadline, of_oneself=True, variants=variants)).count

    async def claim(self, name: str, holder: str, seconds: float, deadline: Deadline) -> bool:
        """Whether `holder` has it now; asked of this host, too, where that decides."""
        try:
            reply = await self._ask("claim", deadline, of_oneself=True, names=[name], holder=holder, seconds=seconds)
        except OSError:
            if self._link is not None:  # it may be granted yet; where the connection is closed that ends it
                self._link.tell("give_back", names=[name], holder=holder)
            raise
        return name in reply.names

    async def give_back(self, name: str, holder: str, deadline: Deadline) -> None:
        """End a claim."""
        await self._ask("give_back", deadline, of_oneself=True, names=[name], holder=holder)

    async def fetch(self, names: list[str], deadline: Deadline, fetched: Fetched) -> None:
        """Read files to the ring until the deadline: what has come by then is in `fetched`, even where this raises."""
        async with self._guarded(deadline) as link:
            if self._is_own(link):
                fetched.missing.update(names)
            left = [] if self._is_own(link) else names
            while left:
                reply = await link.ask("fetch", deadline, names=left)
                grants = {grant.name: grant for grant in reply.grants if grant.name in left}
                fetched.missing |= set(left) - grants.keys() - set(reply.busy)
                await self._read(link, list(grants.values()), fetched, deadline)
                left = [name for name in left if name in reply.busy] if grants and not deadline.passed else []

    def close(self) -> None:
        if self._recovery is not None:
            self._recovery.cancel()
        if self._link is not None:
            self._link.close()

    async def _read(self, link: PeerLink, grants: list[Grant], fetched: Fetched, deadline: Deadline) -> None:
        """Raises OSError where the peer is to blame that none came."""
        if not grants:
            return
        reads = {asyncio.create_task(link.read(grant, deadline)): grant for grant in grants}
        done, late = await asyncio.wait(reads, timeout=deadline.remaining)
        for task in late:
            task.add_done_callback(self._unwanted)
        failure: BaseException | None = TimeoutError(f"of {len(reads)} files none had come in time") if late else None
        num_came = 0
        for task in done:
            if (error := task.exception()) is not None:
                failure = error
            elif (start := task.result()) is not None:
                fetched.came[reads[task].name] = (start, reads[task].num_bytes)
                num_came += 1
        if failure is not None and num_came == 0:
            raise failure

    def _unwanted(self, task: "asyncio.Task[int | None]") -> None:
        """What comes after the deadline goes at once."""
        if not task.cancelled() and task.exception() is None and (start := task.result()) is not None:
            self._ring.give_back(start)

    async def _ask(self, op: Any, deadline: Deadline, *, of_oneself: bool = False, **fields: Any) -> Reply:
        async with self._guarded(deadline) as link:
            if self._is_own(link) and not of_oneself:
                return Reply(id=0)
            return await link.ask(op, deadline, **fields)

    def _is_own(self, link: PeerLink) -> bool:
        return not self._own_hosts.isdisjoint(link.lent.hosts)

    @asynccontextmanager
    async def _guarded(self, deadline: Deadline) -> AsyncIterator[PeerLink]:
        """A call, which the breaker counts. Where nothing was heard since it began its connection may be dead."""
        if self._breaker.is_open:
            raise NotAskedError(f"the peer at {self.address} is not asked now: it failed again and again")
        if deadline.passed:
            raise TimeoutError("there is no time left to ask")
        began = time.monotonic()
        try:
            yield await self._linked(deadline)
        except BaseException as error:
            self._failed(error, began)
            raise
        self._breaker.succeeded()

    def _failed(self, error: BaseException, began: float) -> None:
        if self._link is not None and self._link.heard_at < began:
            self._link.close()
        self._breaker.failed(error)
        if self._breaker.is_open and (self._recovery is None or self._recovery.done()):
            self._recovery = asyncio.create_task(self._recover())

    async def _recover(self) -> None:
        """Try it until it answers."""
        while self._breaker.is_open:
            await asyncio.sleep(LOOK_EVERY_S)
            if not self._breaker.allows():
                continue
            began, deadline = time.monotonic(), Deadline.after(TRY_S)
            try:
                link = await self._linked(deadline)
                await link.ask("lookup", deadline, names=[])
                if not self._is_own(link):
                    link.prepare()
            except OSError as error:
                self._failed(error, began)
            else:
                self._breaker.succeeded()

    async def _linked(self, deadline: Deadline) -> PeerLink:
        async with asyncio.timeout(deadline.remaining), self._linking:
            if self._link is None or self._link.is_closed:
                self._link = await PeerLink.open(self.address, self._token, self._ring)
            return self._link
