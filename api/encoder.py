"""Have vLLM compute and keep the KV of passages, by ordinary requests, many in flight."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from enum import Enum

from kvblend.api.encode_context import EncodeContext
from kvblend.api.metrics import Metrics
from kvblend.api.passage_kv import KVName, PassageKV
from kvblend.api.replica import EngineFacts, Replica, Replicas
from kvblend.core.control import EngineInfo
from kvblend.core.errors import EngineUnavailableError, KVBlendError
from kvblend.core.identity import token_hash
from kvblend.core.plan import EncodeOrder, KVBlendParams

__all__ = ["NO_CONTEXT", "EncodeResult", "Encoder"]

logger = logging.getLogger(__name__)

NO_CONTEXT = EncodeContext((), 0)
"""What the preamble itself is encoded behind."""

MAX_IN_FLIGHT = 16
MAX_IN_BACKGROUND = 2
"""Of what answers have missed: their encodes share the engine with live requests."""
COMMIT_WAIT_S = 60.0
OTHERS_WAIT_S = 0.1
FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 2.0


class EncodeResult(Enum):
    STORED = "stored"
    REUSED = "reused"
    FAILED = "failed"


class Encoder:
    """Encodes a passage once, however many ask for it at the same time."""

    def __init__(self, replicas: Replicas, passage_kv: PassageKV, metrics: Metrics) -> None:
        self._replicas = replicas
        self._passage_kv = passage_kv
        self._metrics = metrics
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._background_slots = asyncio.Semaphore(MAX_IN_BACKGROUND)
        self._running: dict[KVName, asyncio.Task[EncodeResult]] = {}
        self._begun: set[KVName] = set()
        self.num_lost = 0
        """Encodes that an unavailable engine has cost so far: somebody should try them again."""

    async def encode(
        self, context: EncodeContext, token_ids: tuple[int, ...], *, owner: str | None = None
    ) -> EncodeResult:
        """Make sure that the tokens' KV behind `context` is in the store. A failure is logged, never raised.

        `owner`: the collection that it is made for, where it is not there. The work goes on where the caller is
        cancelled.
        """
        task = self._task(context, token_ids, self._slots, owner)
        await asyncio.wait((task,))
        return EncodeResult.FAILED if task.cancelled() else task.result()

    def encode_soon(
        self, passages: Iterable[tuple[EncodeContext, tuple[int, ...]]], *, owner: str | None = None
    ) -> None:
        """Encode in the background, a few at a time; returns at once."""
        for context, token_ids in passages:
            self._task(context, token_ids, self._background_slots, owner)

    async def engine_info(self) -> EngineInfo | None:
        """Of the engine that would encode now; None where none answers."""
        try:
            _, facts = await self._replicas.choose()
        except EngineUnavailableError:
            return None
        return facts.info

    def is_encoding(self, name: KVName) -> bool:
        return name in self._running

    async def drop(self, names: Iterable[KVName]) -> None:
        """Give up what waits to be encoded of these, and wait for what is being encoded."""
        tasks = [self._running[name] for name in names if name in self._running]
        for name in names:
            if name in self._running and name not in self._begun:
                self._running[name].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _task(
        self, context: EncodeContext, token_ids: tuple[int, ...], slots: asyncio.Semaphore, owner: str | None
    ) -> asyncio.Task[EncodeResult]:
        name = (context.hash, token_hash(token_ids))
        if context.hash == NO_CONTEXT.hash:
            owner = None  # a preamble is no collection's own
        task = self._running.get(name)
        if task is None:
            work = self._encode(context, token_ids, name, slots, owner)
            task = asyncio.create_task(work, name="kvblend encode")
            self._running[name] = task
            task.add_done_callback(lambda _: self._ended(name))
        return task

    def _ended(self, name: KVName) -> None:
        self._running.pop(name, None)
        self._begun.discard(name)

    async def _encode(
        self,
        context: EncodeContext,
        token_ids: tuple[int, ...],
        name: KVName,
        slots: asyncio.Semaphore,
        owner: str | None,
    ) -> EncodeResult:
        async with slots:
            self._begun.add(name)
            try:
                replica, facts = await self._replicas.choose()
                if facts.info is None:
                    return EncodeResult.FAILED  # said once, when the silent channel was noticed
                async with self._turn(facts.info, name):
                    if not await self._passage_kv.missing(facts.info, [name]):
                        return EncodeResult.REUSED
                    report_id = uuid.uuid4().hex
                    problem = await self._send(replica, facts, context, token_ids, report_id, owner)
                    if problem is None:
                        problem = await self._committed(replica, facts.info, name, report_id)
            except EngineUnavailableError as error:
                self.num_lost += 1
                problem = error.message
            except KVBlendError as error:
                problem = error.message
        if problem is None:
            self._metrics.encoded(len(token_ids))
            return EncodeResult.STORED
        logger.warning("passage %s was not encoded: %s", name[1][:12], problem)
        return EncodeResult.FAILED

    @asynccontextmanager
    async def _turn(self, info: EngineInfo, name: KVName) -> AsyncIterator[None]:
        """Wait while another service that shares the store encodes the passage; not for ever."""
        give_up_at = time.monotonic() + COMMIT_WAIT_S
        while (claim := await self._passage_kv.claim(info, name, seconds=COMMIT_WAIT_S)) is None:
            if time.monotonic() > give_up_at or not await self._passage_kv.missing(info, [name]):
                break
            await asyncio.sleep(OTHERS_WAIT_S)
        try:
            yield
        finally:
            if claim is not None:
                await asyncio.to_thread(claim)

    async def _send(
        self,
        replica: Replica,
        facts: EngineFacts,
        context: EncodeContext,
        token_ids: tuple[int, ...],
        report_id: str,
        owner: str | None,
    ) -> str | None:
        """Let one server compute the KV; why it cannot, or None."""
        prompt = [*context.token_ids, *token_ids]
        if len(prompt) >= facts.max_model_len:
            return f"it takes {len(prompt) + 1} tokens behind its encode context, the model {facts.max_model_len}"
        owners = () if owner is None else (owner,)
        order = KVBlendParams(
            report_id=report_id, encode=EncodeOrder(start=len(context.token_ids), end=len(prompt), owners=owners)
        )
        body = {
            "model": facts.model,
            "prompt": prompt,
            "max_tokens": 1,
            "temperature": 0.0,
            "kv_transfer_params": {"kvblend": order.model_dump(mode="json", exclude_none=True)},
        }
        with replica.request():
            await replica.engine.post("/v1/completions", body)
        return None

    async def _committed(self, replica: Replica, info: EngineInfo, name: KVName, report_id: str) -> str | None:
        """Wait until every rank's file is where it must last, after the response; what went wrong, or None.

        The store itself is asked, and the control channel for a failure.
        """
        wait_s, deadline = FIRST_WAIT_S, time.monotonic() + COMMIT_WAIT_S
        while await self._passage_kv.uncommitted(info, [name]):
            if time.monotonic() > deadline:
                return f"it was not committed within {COMMIT_WAIT_S:.0f} s"
            reply = await replica.control.encoded(report_id, wait_s=wait_s)
            if reply is None:
                return "the control channel fell silent"
            if reply.encoded is False:
                return reply.error or "the engine does not say why"
            if reply.encoded and await self._passage_kv.uncommitted(info, [name]):
                return "the engine says that it is stored, but it is in no tier of this service's store"
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        return None
