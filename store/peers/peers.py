"""All of a host's peers: who has what, and the fetching of it."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import TypeVar

from kvblend.store.deadline import Deadline
from kvblend.store.peers.claims import deciders
from kvblend.store.peers.directory import Directory
from kvblend.store.peers.messages import Grant, Reply, Request
from kvblend.store.peers.peer import Fetched, NotAskedError, Peer
from kvblend.store.peers.ring import Ring

__all__ = ["Peers"]

log = logging.getLogger(__name__)

Answered = TypeVar("Answered")

MAX_ROUNDS = 3
MARGIN_S = 0.01
"""What an answer's way back takes, off the asker's time."""


class Peers:
    """Asks all peers at once, and waits for none longer than there is a use for its answer.

    A file is fetched from one that has said, not long ago, that it has it, and from another where that one fails.
    """

    def __init__(self, peers: Sequence[Peer], ring: Ring) -> None:
        """`ring`: what is fetched lies there, lent to whoever asked for it."""
        self._peers, self.ring = peers, ring
        self._directory: Directory[Peer] = Directory()
        self._under_way: set[asyncio.Task[object]] = set()

    async def warm_up(self) -> None:
        """Connect to those who are there."""
        await asyncio.gather(*(peer.warm_up() for peer in self._peers))

    async def answer(self, request: Request, holder: Hashable) -> Reply | None:
        deadline = Deadline.after(max(0.0, request.wait_s - min(MARGIN_S, request.wait_s / 10)))
        match request.op:
            case "lookup":
                failures = list[str]()
                found = await self._lookup(request.names, deadline, failures)
                return Reply(id=request.id, names=sorted(found), unreached=failures)
            case "fetch":
                failures = list[str]()
                came = await self._fetch(request.names, deadline, failures)
                grants = [
                    Grant(name=name, lease=self.ring.lend(start, holder), start=start, num_bytes=num_bytes)
                    for name, (start, num_bytes) in came.items()
                ]
                return Reply(id=request.id, grants=grants, unreached=failures)
            case "release":
                for lease in request.leases:
                    self.ring.release(lease, holder)
                return None
            case "delete":
                return await self._delete(request, deadline)
            case "variants":
                passage = request.passage or ("", "")
                variants = await self._all(lambda peer: peer.variants(passage, deadline))
                return Reply(id=request.id, names=sorted({name for names in variants.values() for name in names}))
            case "check":
                return Reply(id=request.id, names=sorted(await self._check(request.names, deadline)))
            case "claim":
                return await self._claim(request, deadline)
            case "give_back":
                own = [peer for peer in self._peers if str(peer) == request.by]
                await asyncio.gather(*(peer.give_back(request.names[0], request.holder, deadline) for peer in own))
                return Reply(id=request.id)

    def ended(self, holder: Hashable) -> None:
        """Take back what was lent to a connection that is closed."""
        self.ring.release_all(holder)

    def close(self) -> None:
        for peer in self._peers:
            peer.close()

    async def _lookup(self, names: list[str], deadline: Deadline, failures: list[str]) -> set[str]:
        """Those that some peer has: as soon as all are found, or the deadline is over, or every peer has answered."""
        found = set[str]()

        async def ask(peer: Peer) -> None:
            there = await peer.lookup(names, deadline)
            self._directory.learn(peer, asked=names, found=there)
            found.update(there)

        pending = {self._start(ask(peer), failures) for peer in self._peers}
        while pending and not found.issuperset(names):
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        return found & set(names)

    async def _fetch(self, names: list[str], deadline: Deadline, failures: list[str]) -> dict[str, tuple[int, int]]:
        """Where each file begins in the ring, and its size. What no peer has, or is late, is left out."""
        came = dict[str, tuple[int, int]]()
        tried: set[tuple[str, Peer]] = set()
        asked = set[str]()
        for _ in range(MAX_ROUNDS):
            left = [name for name in dict.fromkeys(names) if name not in came]
            plan = self._plan(left, tried)
            planned = {name for own in plan.values() for name in own}
            unknown = [name for name in left if name not in planned and name not in asked]
            if unknown:
                asked.update(unknown)
                await self._lookup(unknown, deadline, failures)
                plan = self._plan(left, tried)
            if not plan or deadline.passed:
                break
            tried |= {(name, peer) for peer, own in plan.items() for name in own}
            others = any(self._candidates(name, tried) for own in plan.values() for name in own)
            limit = Deadline.after(deadline.remaining / 2) if others else deadline
            fetches = [self._start(self._fetch_from(peer, own, limit, came), failures) for peer, own in plan.items()]
            await asyncio.wait(fetches)
        return came

    async def _fetch_from(
        self, peer: Peer, names: list[str], deadline: Deadline, came: dict[str, tuple[int, int]]
    ) -> None:
        fetched = Fetched()
        try:
            await peer.fetch(names, deadline, fetched)
        finally:
            came.update(fetched.came)
        for name in fetched.missing:
            self._directory.forget(peer, name)

    def _plan(self, names: list[str], tried: set[tuple[str, Peer]]) -> dict[Peer, list[str]]:
        """Whom to ask for what: one of those who have it, by chance."""
        plan = dict[Peer, list[str]]()
        for name in names:
            if candidates := self._candidates(name, tried):
                plan.setdefault(random.choice(candidates), []).append(name)
        return plan

    def _candidates(self, name: str, tried: set[tuple[str, Peer]]) -> list[Peer]:
        """Those who have it and were not tried; who fails again and again, only where nobody else has it."""
        own = [peer for peer in self._directory.holders(name) if (name, peer) not in tried]
        return [peer for peer in own if not peer.is_failing] or own

    async def _delete(self, request: Request, deadline: Deadline) -> Reply:
        """Every peer is asked, this host too, whatever becomes of the others."""
        counts = await asyncio.gather(
            *(peer.delete(request.variants, deadline) for peer in self._peers), return_exceptions=True
        )
        unreached = list[str]()
        for peer, count in zip(self._peers, counts, strict=True):
            if isinstance(count, BaseException):
                unreached.append(f"{peer}: {type(count).__name__} {count}".strip())
        return Reply(id=request.id, count=sum(count for count in counts if isinstance(count, int)), unreached=unreached)

    async def _claim(self, request: Request, deadline: Deadline) -> Reply:
        """Ask the one that decides of the name; where it fails or is late the next one. Where none answers nobody
        does, and whoever asks goes on: the name is in the reply, and `by` is empty."""
        (name,) = request.names
        living = [peer for peer in deciders(name, self._peers) if not peer.is_failing]
        for place, peer in enumerate(living, start=1):
            limit = Deadline.after(deadline.remaining / 2) if place < len(living) else deadline
            try:
                has = await peer.claim(name, request.holder, request.seconds, limit)
            except OSError as error:
                log.debug("the peer at %s has not decided of %s: %s", peer, name, error)
                continue
            return Reply(id=request.id, names=[name] if has else [], by=str(peer))
        return Reply(id=request.id, names=[name])

    async def _check(self, names: list[str], deadline: Deadline) -> set[str]:
        found = await self._all(lambda peer: peer.check(names, deadline))
        for peer, aside in found.items():
            for name in aside:
                self._directory.forget(peer, name)
        return {name for aside in found.values() for name in aside}

    async def _all(self, ask: Callable[[Peer], Awaitable[Answered]]) -> dict[Peer, Answered]:
        """What each peer answers, of those that do."""
        answers = dict[Peer, Answered]()

        async def collect(peer: Peer) -> None:
            answers[peer] = await ask(peer)

        if self._peers:
            await asyncio.wait([self._start(collect(peer), []) for peer in self._peers])
        return answers

    def _start(self, work: Awaitable[None], failures: list[str]) -> "asyncio.Task[None]":
        """Do it, to its end even where nobody waits for it any more. A peer's failure is its breaker's to report, and
        is added to `failures`."""

        async def contained() -> None:
            try:
                await work
            except NotAskedError as error:
                log.debug("%s", error)
            except OSError as error:
                log.debug("a peer's answer is none: %s", error)
                failures.append(f"{type(error).__name__} {error}".strip())

        task = asyncio.create_task(contained())
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task
