"""One vLLM server as the service knows it, and the choice among several that serve the same model."""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from kvblend.api.control import ControlClient
from kvblend.api.engine import EngineClient
from kvblend.api.load import Load
from kvblend.core.control import EngineInfo
from kvblend.core.errors import EngineUnavailableError

__all__ = ["EngineFacts", "Replica", "Replicas"]

logger = logging.getLogger(__name__)

RETRY_INFO_S = 5.0


@dataclass(frozen=True)
class EngineFacts:
    """What a vLLM server serves. `info` is None where its control channel is silent: it can prefill, not blend."""

    model: str
    max_model_len: int
    info: EngineInfo | None


class Replica:
    """A vLLM server, its control channel, and what they said when they were last asked."""

    def __init__(self, url: str, control_address: str) -> None:
        self.engine = EngineClient(url)
        self.control = ControlClient(control_address)
        self.load = Load()
        self._facts: EngineFacts | None = None
        self._asked_at = 0.0
        self._asking = asyncio.Lock()

    async def close(self) -> None:
        await self.engine.close()
        await self.control.close()

    async def facts(self) -> EngineFacts:
        """What the server is, asked once until `forget`; a silent control channel is asked again after a while.

        Raises EngineUnavailableError.
        """
        async with self._asking:
            facts = self._facts
            silent_too_long = (
                facts is not None and facts.info is None and time.monotonic() - self._asked_at > RETRY_INFO_S
            )
            if facts is None or silent_too_long:
                facts = await self._ask()
            return facts

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request while the block runs; a server that fails it is forgotten."""
        with self.load.request():
            try:
                yield
            except EngineUnavailableError:
                self.forget()
                raise

    def forget(self) -> None:
        """Ask again before the next request: the server died, and another model may come back."""
        self._facts = None

    async def _ask(self) -> EngineFacts:
        cards, info = await asyncio.gather(self.engine.models(), self.control.info())
        if not cards:
            raise EngineUnavailableError(f"the vLLM server at {self.engine.url} serves no model")
        facts = EngineFacts(
            model=cards[0]["id"],
            max_model_len=info.max_model_len if info else int(cards[0]["max_model_len"]),
            info=info,
        )
        if info is None and (self._facts is None or self._facts.info is not None):
            logger.warning(
                "no control channel answers at %s: the vLLM server at %s answers by plain prefill, nothing is reused",
                self.control.address,
                self.engine.url,
            )
        self._facts, self._asked_at = facts, time.monotonic()
        return facts


class Replicas:
    """vLLM servers of one model on one store, so that each holds every passage: the least busy answers."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        if not replicas:
            raise ValueError("a service needs at least one vLLM server")
        self._replicas = list(replicas)

    async def close(self) -> None:
        for replica in self._replicas:
            await replica.close()

    async def choose(self) -> tuple[Replica, EngineFacts]:
        """The least busy server that answers. Raises EngineUnavailableError where none does."""
        failure: EngineUnavailableError | None = None
        for replica in sorted(self._replicas, key=lambda replica: replica.load.num_requests):
            try:
                return replica, await replica.facts()
            except EngineUnavailableError as error:
                failure = error
        assert failure is not None
        raise failure

    async def ready(self) -> list[tuple[bool, bool]]:
        """For each server whether it is healthy, and whether its control channel answers."""
        return list(await asyncio.gather(*(self._ready(replica) for replica in self._replicas)))

    @staticmethod
    async def _ready(replica: Replica) -> tuple[bool, bool]:
        healthy, info = await asyncio.gather(replica.engine.is_healthy(), replica.control.info())
        if not healthy:
            replica.forget()
        return healthy, info is not None
