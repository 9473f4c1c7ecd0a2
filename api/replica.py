"""One vLLM server as the service knows it, and the choice among several that serve the same model."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import SecretStr

from kvblend.api.background import end_task
from kvblend.api.control import ControlClient
from kvblend.api.engine import EngineClient
from kvblend.api.load import Load
from kvblend.core.control import EngineInfo
from kvblend.core.errors import EngineUnavailableError

__all__ = ["EngineFacts", "Replica", "Replicas"]

logger = logging.getLogger(__name__)

RETRY_INFO_S = 5.0
RETRY_DOWN_S = 2.0
WATCH_EVERY_S = 5.0


@dataclass(frozen=True)
class EngineFacts:
    """What a vLLM server serves. `info` is None where its control channel is silent: it can prefill, not blend."""

    model: str
    max_model_len: int
    info: EngineInfo | None


class Replica:
    """A vLLM server, its control channel, and what they said when they were last asked."""

    def __init__(self, url: str, control_address: str, *, api_key: SecretStr | None = None) -> None:
        self.engine = EngineClient(url, api_key=api_key)
        self.control = ControlClient(control_address)
        self.load = Load()
        self._facts: EngineFacts | None = None
        self._asked_at = 0.0
        self._asking: asyncio.Task[EngineFacts] | None = None
        self._failure: str | None = None
        """Why it did not answer when it was last asked."""

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        await self.engine.close()
        await self.control.close()

    @property
    def is_known(self) -> bool:
        """Whether it answered when it was last asked, and has failed no request since."""
        return self._facts is not None

    async def facts(self) -> EngineFacts:
        """What the server is, asked once until `forget`; a silent control channel is asked again after a while, and so
        is a server that did not answer. However many want to know, it is asked once at a time.

        Raises EngineUnavailableError.
        """
        since_s = time.monotonic() - self._asked_at
        if self._facts is not None and (self._facts.info is not None or since_s <= RETRY_INFO_S):
            return self._facts
        if self._facts is None and self._failure is not None and since_s <= RETRY_DOWN_S:
            raise EngineUnavailableError(self._failure)
        return await asyncio.shield(self._ask_once())

    def look(self) -> None:
        """Begin to ask a server that is not known, where that is due; returns at once."""
        is_due = self._failure is None or time.monotonic() - self._asked_at > RETRY_DOWN_S
        if self._facts is None and is_due:
            self._ask_once()

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

    async def check(self) -> None:
        """Pass over a server that does not answer its health check until it answers again."""
        if not await self.engine.is_healthy():
            message = f"the vLLM server at {self.engine.url} does not answer its health check"
            logger.warning("%s: others answer in its place", message)
            self._facts, self._failure, self._asked_at = None, message, time.monotonic()

    def revive(self) -> None:
        """Ask before the next request, however lately the server did not answer: somebody has seen it well."""
        self._failure = None

    def _ask_once(self) -> "asyncio.Task[EngineFacts]":
        """The question that is under way, or a new one."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="kvblend replica")
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())  # all may have left
        return self._asking

    async def _ask(self) -> EngineFacts:
        try:
            facts = await self._ask_both()
        except EngineUnavailableError as error:
            self._facts, self._failure = None, error.message
            raise
        finally:
            self._asked_at = time.monotonic()
        self._facts, self._failure = facts, None
        return facts

    async def _ask_both(self) -> EngineFacts:
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
        return facts


class Replicas:
    """vLLM servers of one model on one store, so that each holds every passage: the least busy answers."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        if not replicas:
            raise ValueError("a service needs at least one vLLM server")
        self._replicas = list(replicas)
        self._watcher: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch for servers that hang, where another can take their place."""
        if len(self._replicas) > 1:
            self._watcher = asyncio.create_task(self._watch(), name="kvblend replicas")

    async def close(self) -> None:
        await end_task(self._watcher)
        for replica in self._replicas:
            await replica.close()

    async def choose(self) -> tuple[Replica, EngineFacts]:
        """The least busy of the servers that are known to answer; where none is, the first that does.

        One that hangs is asked beside the requests, and none waits for it while another answers. Raises
        EngineUnavailableError where none does.
        """
        for replica in self._replicas:
            replica.look()
        known = [replica for replica in self._replicas if replica.is_known]
        for replica in sorted(known, key=lambda replica: replica.load.num_requests):
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

    async def ready(self) -> list[tuple[bool, bool]]:
        """For each server whether it is healthy, and whether its control channel answers."""
        return list(await asyncio.gather(*(self._ready(replica) for replica in self._replicas)))

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
