"""Have vLLM compute and keep the KV of passages, by ordinary requests, many in flight."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum

from kvblend.api.engine.priority import BULK, MISSED
from kvblend.api.engine.replicas import Replicas
from kvblend.api.kv.encode_run import EncodeRun
from kvblend.api.kv.encode_sender import COMMIT_WAIT_S, send_encode
from kvblend.api.kv.passage_kv import KVName, PassageKV
from kvblend.api.kv.token_slots import TokenSlots, TokenTurn
from kvblend.api.metrics import Metrics
from kvblend.core.control import EngineInfo
from kvblend.core.errors import EngineUnavailableError, KVBlendError

__all__ = ["EncodeResult", "Encoder"]

logger = logging.getLogger(__name__)

MAX_TOKENS = 16_384
"""In flight, with what is in front of the passages: a few windows of a document, or many passages alone."""
MAX_BACKGROUND_TOKENS = 2048
"""Of what answers have missed: their encodes share the engine with live requests."""
OTHERS_WAIT_S, LONGEST_OTHERS_WAIT_S = 0.1, 2.0


class EncodeResult(Enum):
    STORED = "stored"
    REUSED = "reused"
    FAILED = "failed"


@dataclass(eq=False)
class _Work:
    """A run on its way, and which of its passages it is for."""

    run: EncodeRun
    wanted: set[KVName]
    owner: str | None
    priority: int
    turn: TokenTurn | None = None
    """Once it waits."""
    begun: bool = False
    results: dict[KVName, EncodeResult] = field(default_factory=dict)


class Encoder:
    """Encodes a passage once, however many ask for it at the same time."""

    def __init__(self, replicas: Replicas, passage_kv: PassageKV, metrics: Metrics) -> None:
        self._replicas = replicas
        self._passage_kv = passage_kv
        self._metrics = metrics
        self._slots = TokenSlots(MAX_TOKENS)
        self._background_slots = TokenSlots(MAX_BACKGROUND_TOKENS)
        self._running: dict[KVName, tuple[_Work, asyncio.Task[None]]] = {}
        self.num_lost = 0
        """Encodes that an unavailable engine has cost so far: somebody should try them again."""

    async def encode(
        self, run: EncodeRun, *, only: Collection[KVName] | None = None, owner: str | None = None
    ) -> dict[KVName, EncodeResult]:
        """Make sure that the KV of a run's passages is in the store. A failure is logged, never raised.

        `only` these of them, where given. `owner`: whose they are, where they are not there.
        The work goes on where the caller is cancelled.
        """
        names = [name for name in run.names if only is None or name in only]
        works = self._begin(run, names, BULK, owner)
        tasks = {task for _, task in works.values()}
        if tasks:
            await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()  # raises what is no failure of the engine's
        return {name: work.results.get(name, EncodeResult.FAILED) for name, (work, _) in works.items()}

    async def encode_one(self, run: EncodeRun, *, owner: str | None = None) -> EncodeResult:
        """`encode` of a run of one passage."""
        (result,) = (await self.encode(run, owner=owner)).values()
        return result

    def encode_soon(self, run: EncodeRun, *, only: Collection[KVName], owner: str | None = None) -> None:
        """Encode in the background, a few at a time; returns at once."""
        self.hurry(only)
        self._begin(run, [name for name in run.names if name in only], MISSED, owner)

    async def engine_info(self) -> EngineInfo | None:
        """Of the engine that would encode now; None where none answers."""
        try:
            _, facts = await self._replicas.choose()
        except EngineUnavailableError:
            return None
        return facts.info

    def is_encoding(self, name: KVName) -> bool:
        return name in self._running

    def hurry(self, names: Iterable[KVName]) -> None:
        """Have the runs that wait with these for ingests' slots go before those: an answer has missed them."""
        for name in names:
            work, _ = self._running.get(name, (None, None))
            if work and work.priority == BULK:
                work.priority = MISSED
                if work.turn:
                    work.turn.wait_in(self._background_slots)

    async def drop(self, names: Iterable[KVName]) -> None:
        """Give up what waits to be encoded of these, and wait for what is being encoded."""
        begun = set()
        for name in names:
            if name not in self._running:
                continue
            work, task = self._running[name]
            if work.begun:
                begun.add(task)
                continue
            work.wanted.discard(name)
            del self._running[name]
            if not work.wanted:
                task.cancel()
                begun.add(task)
        await asyncio.gather(*begun, return_exceptions=True)

    async def close(self) -> None:
        tasks = {task for _, task in self._running.values()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(
        self, run: EncodeRun, names: Iterable[KVName], priority: int, owner: str | None
    ) -> dict[KVName, tuple[_Work, asyncio.Task[None]]]:
        """By name, the work under way; what none is under way for, one pass does together."""
        names = list(names)
        new = {name for name in names if name not in self._running}
        if new:
            work = _Work(run, new, owner, priority)
            task = asyncio.create_task(self._encode(work), name="kvblend encode")
            for name in new:
                self._running[name] = work, task
            task.add_done_callback(lambda _: self._ended(work))
        return {name: self._running[name] for name in names}

    def _ended(self, work: _Work) -> None:
        for name in work.wanted:
            if name in self._running and self._running[name][0] is work:
                del self._running[name]

    async def _encode(self, work: _Work) -> None:
        last = max((part.end for part in work.run.parts if part.name in work.wanted), default=0)
        work.turn = TokenTurn(last, self._slots if work.priority == BULK else self._background_slots)
        async with work.turn.taken():
            work.begun = True
            try:
                failures = await self._encoded(work)
            except EngineUnavailableError as error:
                self.num_lost += 1
                failures = self._rest(work, error.message)
            except KVBlendError as error:
                failures = self._rest(work, error.message)
        for name, problem in failures.items():
            work.results[name] = EncodeResult.FAILED
            logger.warning("passage %s was not encoded: %s", name[1][:12], problem)

    async def _encoded(self, work: _Work) -> dict[KVName, str]:
        """Encode what is missing of the wanted; why some of it could not be, by name."""
        replica, facts = await self._replicas.choose()
        if facts.info is None:
            work.results |= dict.fromkeys(work.wanted, EncodeResult.FAILED)
            return {}  # said once, when the silent channel was noticed
        async with self._turn(facts.info, work):
            missing = await self._passage_kv.missing(facts.info, sorted(work.wanted))
            work.results |= dict.fromkeys(work.wanted - set(missing), EncodeResult.REUSED)
            if not missing:
                return {}
            failures = await send_encode(
                replica, facts, self._passage_kv, work.run, missing, owner=work.owner, priority=work.priority
            )
        for name, num_tokens in work.run.lengths.items():
            if name in missing and name not in failures:
                work.results[name] = EncodeResult.STORED
                self._metrics.encoded(num_tokens)
        return failures

    @staticmethod
    def _rest(work: _Work, problem: str) -> dict[KVName, str]:
        return {name: problem for name in work.wanted if name not in work.results}

    @asynccontextmanager
    async def _turn(self, info: EngineInfo, work: _Work) -> AsyncIterator[None]:
        """Wait while another service that shares the store encodes the run; not for ever.

        A run goes by its first passage, so that two who want different passages of it wait for each other, too.
        """
        name, give_up_at, wait_s = work.run.names[0], time.monotonic() + COMMIT_WAIT_S, OTHERS_WAIT_S
        while (claim := await self._passage_kv.claim(info, name, seconds=COMMIT_WAIT_S)) is None:
            if time.monotonic() > give_up_at or not await self._passage_kv.missing(info, sorted(work.wanted)):
                break
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_OTHERS_WAIT_S)
        try:
            yield
        finally:
            if claim is not None:
                await asyncio.to_thread(claim)
