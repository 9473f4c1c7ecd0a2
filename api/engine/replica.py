"""One vLLM server as the service knows it: what it serves, whether it answers, what it works on."""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import SecretStr

from kvblend.api.engine.client import EngineClient
from kvblend.api.engine.control_channels import ControlChannels
from kvblend.api.engine.load import Load
from kvblend.core.breaker import CircuitBreaker
from kvblend.core.control import EngineInfo, Held, KVName
from kvblend.core.errors import EngineUnavailableError, KVBlendError

__all__ = ["EngineFacts", "Replica"]

logger = logging.getLogger(__name__)

RETRY_INFO_S = 5.0
RETRY_DOWN_S, LONGEST_PAUSE_S = 1.0, 8.0
PATIENCE_S = 15.0
"""That a server which worked has with its health check: on a busy machine it is late, and not dead."""


@dataclass(frozen=True)
class EngineFacts:
    """What a vLLM server serves. `info` is None where its control channel is silent: it can prefill, not blend."""

    model: str
    max_model_len: int
    info: EngineInfo | None


class Replica:
    """A vLLM server, its control channel, and what they said when they were last asked.

    `engine` is its HTTP API, to be used inside of `request`; `control` its control channel; `load` what it works on. A
    circuit breaker keeps requests from a server that is dead or hangs, until it says again what it serves.
    """

    def __init__(
        self, url: str, control_address: str, *, api_key: SecretStr | None = None, timeout_s: float | None = None
    ) -> None:
        """`control_address`: where a router stands at `url`, those of all its engines, with commas between them.
        `timeout_s`: for which it may send nothing of an answer."""
        self.engine = EngineClient(url, api_key=api_key, timeout_s=timeout_s)
        self.control = ControlChannels(control_address)
        self.load = Load()
        self.takes_priority = True
        """Whether its vLLM schedules by priority, as far as is known."""
        self._facts: EngineFacts | None = None
        self._asked_at = 0.0
        self._asking: asyncio.Task[EngineFacts] | None = None
        self._failure = f"the vLLM server at {url} does not answer"
        self._breaker = CircuitBreaker(
            f"vLLM server at {url}", max_failures=1, pause_s=RETRY_DOWN_S, longest_pause_s=LONGEST_PAUSE_S
        )

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

    @property
    def is_shunned(self) -> bool:
        """Whether its circuit breaker keeps requests from it."""
        return self._breaker.is_open

    async def facts(self) -> EngineFacts:
        """What the server is, asked once until `forget`. A silent control channel is asked again after a while, beside
        the requests, and so is a server that did not answer. However many want to know, it is asked once at a time.

        Raises EngineUnavailableError.
        """
        if self._facts is not None:
            if self._facts.info is None and time.monotonic() - self._asked_at > RETRY_INFO_S:
                self._ask_once()
            return self._facts
        if not self._is_asking and not self._breaker.allows():
            raise EngineUnavailableError(self._failure)
        return await asyncio.shield(self._ask_once())

    async def held(self, names: Sequence[KVName], *, timeout_s: float) -> tuple[set[KVName], int]:
        """Those of `names` whose KV it has near, and the requests that it works on: none, and this service's own, where
        it does not say so in time."""
        told: Held | None = None
        if names and self._facts is not None and self._facts.info is not None and self._facts.info.places:
            told = await self.control.held(names, timeout_s=timeout_s)
        if told is None:
            return set(), self.load.num_requests
        held = {name for name, is_held in zip(names, told.passages, strict=True) if is_held}
        return held, max(told.num_requests, self.load.num_requests)

    def look(self) -> None:
        """Begin to ask a server that is not known, where that is due; returns at once."""
        if self._facts is None and not self._is_asking and self._breaker.allows():
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
        self._facts, self.takes_priority = None, True

    async def check(self) -> None:
        """Ask a server that does not answer its health check nothing more, until it says again what it serves."""
        if not await self.engine.is_healthy(timeout_s=PATIENCE_S):
            self._failed(EngineUnavailableError(f"the vLLM server at {self.engine.url} fails its health check"))

    def revive(self) -> None:
        """Ask before the next request, however lately the server did not answer: somebody has seen it well."""
        if self._facts is None and not self._is_asking:
            self._breaker.succeeded()

    @property
    def _is_asking(self) -> bool:
        return self._asking is not None and not self._asking.done()

    def _ask_once(self) -> "asyncio.Task[EngineFacts]":
        """The question that is under way, or a new one."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="kvblend replica")
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())  # all may have left
        return self._asking

    async def _ask(self) -> EngineFacts:
        try:
            facts = await self._ask_both()
        except Exception as error:  # whatever listens there, it does not answer as vLLM does
            failure = error.message if isinstance(error, KVBlendError) else f"{type(error).__name__}: {error}"
            raise self._failed(EngineUnavailableError(failure)) from error
        finally:
            self._asked_at = time.monotonic()
        self._facts = facts
        self._breaker.succeeded()
        return facts

    def _failed(self, error: EngineUnavailableError) -> EngineUnavailableError:
        self._facts, self._failure = None, error.message
        self._breaker.failed(error)
        return error

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
