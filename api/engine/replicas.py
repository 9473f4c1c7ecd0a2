"""Asks one of the vLLM servers that serve the same model, and another one where it dies."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from kvblend.api.background import end_task
from kvblend.api.engine.choice import Candidate, Wanted, best_first
from kvblend.api.engine.replica import RETRY_DOWN_S, EngineFacts, Replica
from kvblend.core.control import KVName
from kvblend.core.errors import EngineFailedError, EngineTimeoutError, EngineUnavailableError

__all__ = ["EngineFacts", "Replica", "Replicas"]

logger = logging.getLogger(__name__)

WATCH_EVERY_S = 5.0
HELD_WAIT_S = 0.05
"""How long a server has to say what it holds of a prompt; it mostly takes a millisecond or two."""
SECOND_TRY_S = 60.0
"""How long an answer waits for a server to try again."""
Item = TypeVar("Item")
Ask = Callable[[Replica, EngineFacts], AsyncGenerator[Item, None]]
"""Sends a request to a server and yields what comes back."""


class Replicas:
    """vLLM servers of one model. The one that has most of a prompt's KV near answers it, unless it is too busy; what
    has none, the least busy."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        if not replicas:
            raise ValueError("a service needs at least one vLLM server")
        self._replicas = list(replicas)
        self._watcher: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch for servers that hang."""
        self._watcher = asyncio.create_task(self._watch(), name="kvblend replicas")

    async def close(self) -> None:
        await end_task(self._watcher)
        for replica in self._replicas:
            await replica.close()

    @property
    def is_idle(self) -> bool:
        """Whether no server works on a request of this service."""
        return not any(replica.load.num_requests for replica in self._replicas)

    async def choose(self, wanted: Wanted | None = None) -> tuple[Replica, EngineFacts]:
        """The best for what is `wanted`, or else the least busy, of the servers that are known to answer; where none
        is, the first that does.

        One that hangs is asked beside the requests, and none waits for it while another answers. Raises
        EngineUnavailableError where none does.
        """
        for replica in self._replicas:
            replica.look()
        known = [replica for replica in self._replicas if replica.is_known]
        for replica in await self._best_first(known, wanted):
            with contextlib.suppress(EngineUnavailableError):
                return replica, await replica.facts()
        asked = {asyncio.create_task(replica.facts()): replica for replica in self._replicas}
        left, failure = set(asked), EngineUnavailableError("no vLLM server answers")
        try:
            while left:
                done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    try:
                        return asked[task], task.result()
                    except EngineUnavailableError as error:
                        failure = error
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        raise failure

    async def answers(self, ask: Ask[Item], *, wanted: Wanted | None = None) -> AsyncGenerator[Item, None]:
        """Yield what `ask` yields of the server that `choose` finds for what is `wanted`.

        Where that server dies before the first item, another one is asked, or the same one once it is back: one second
        try, and none where the server lives and failed on this request alone. `ask` counts its request by
        `Replica.request`. Raises what it raises, and EngineUnavailableError.
        """
        replica, facts = await self.choose(wanted)
        begun = False
        try:
            async with aclosing(ask(replica, facts)) as items:
                async for item in items:
                    begun = True
                    yield item
            return
        except EngineUnavailableError as error:
            if begun or await self._lives(replica, error):
                raise
            logger.warning("%s: its request is tried again", error.message)
        replica, facts = await self._choose_later()
        async with aclosing(ask(replica, facts)) as items:
            async for item in items:
                yield item

    async def answer(self, path: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """A server's whole answer to `POST path`, by the model that it serves where `fields` name none; as `answers`.

        Raises what `EngineClient` raises.
        """

        async def ask(replica: Replica, facts: EngineFacts) -> AsyncGenerator[dict[str, Any], None]:
            with replica.request():
                yield await replica.engine.post(path, {"model": facts.model, **fields})

        async with aclosing(self.answers(ask)) as answers:
            return await anext(answers)

    async def ready(self) -> list[tuple[bool, bool]]:
        """For each server whether it is healthy, and whether its control channel answers."""
        return list(await asyncio.gather(*(self._ready(replica) for replica in self._replicas)))

    async def held(self, names: Sequence[KVName]) -> set[KVName]:
        """Passage KV, by encode context and passage id, that lies near some server that says so in time."""
        told = await asyncio.gather(*(replica.held(names, timeout_s=HELD_WAIT_S) for replica in self._replicas))
        return {name for held, _ in told for name in held}

    async def _best_first(self, known: Sequence[Replica], wanted: Wanted | None) -> list[Replica]:
        if wanted is None or len(known) < 2:
            return sorted(known, key=lambda replica: replica.load.num_requests)
        names = wanted.names
        told = await asyncio.gather(*(replica.held(names, timeout_s=HELD_WAIT_S) for replica in known))
        candidates = [
            Candidate(replica.engine.url, num_requests, wanted.num_held(held))
            for replica, (held, num_requests) in zip(known, told, strict=True)
        ]
        return [known[number] for number in best_first(candidates, wanted.session)]

    async def _choose_later(self) -> tuple[Replica, EngineFacts]:
        """`choose`, as soon as a server answers. Raises EngineUnavailableError where none does for long."""
        until = time.monotonic() + SECOND_TRY_S
        while True:
            try:
                return await self.choose()
            except EngineUnavailableError:
                if time.monotonic() > until:
                    raise
            await asyncio.sleep(RETRY_DOWN_S / 4)

    @staticmethod
    async def _lives(replica: Replica, error: EngineUnavailableError) -> bool:
        """Whether a server that failed a request has only failed that request."""
        return isinstance(error, EngineFailedError | EngineTimeoutError) and await replica.engine.is_healthy()

    async def _watch(self) -> None:
        """A server that hangs takes requests and ends none: it looks idle once those who wait have left."""
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            await asyncio.gather(*(replica.check() for replica in self._replicas if replica.is_known))

    @staticmethod
    async def _ready(replica: Replica) -> tuple[bool, bool]:
        healthy, info = await asyncio.gather(replica.engine.is_healthy(), replica.control.info())
        if healthy:
            replica.revive()
        else:
            replica.forget()
        return healthy, info is not None
