"""Time a few requests against the engine at start, to know when blending cannot pay."""

import asyncio
import logging
import time
import uuid
from collections.abc import Sequence
from contextlib import aclosing

from kvblend.api.background import end_task
from kvblend.api.engine.replicas import EngineFacts, Replica, Replicas
from kvblend.api.kv.encode_context import NO_CONTEXT
from kvblend.api.kv.encode_run import EncodeRun
from kvblend.api.kv.encoder import Encoder, EncodeResult
from kvblend.api.kv.passage_kv import PassageKV
from kvblend.api.prompt.blend_prompt import BlendPrompt, PromptPassage
from kvblend.api.prompt.builder import Frame
from kvblend.api.quality.cost_model import CostModel, CostSample, Work
from kvblend.core.control import EngineInfo
from kvblend.core.errors import EngineUnavailableError, KVBlendError
from kvblend.core.identity import token_hash
from kvblend.core.order_fields import with_order
from kvblend.core.plan import KVBlendParams

__all__ = ["CostFit"]

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
LONGEST_PAUSE_S = 600.0
"""Between attempts that requests cut short: each encodes a few hundred tokens."""
IDLE_S = 1.0
REPORT_WAIT_S = 2.0
NUM_ROUNDS = 3
"""The fastest of each request is taken: what else the machine does only ever adds time."""

HEAD, SHORT, LONG, QUESTION = 16, 32, 256, 16
"""Tokens: a first passage, which stands where it was encoded, a short and a long one to move, and a question."""

NUM_TOKENS = HEAD + SHORT + LONG + QUESTION
REPAIR_RATIO = 0.5


class CostFit:
    """Fits a cost model to whatever engine answers, in the background and while no request is in flight.

    `token_ids`: at least 320 tokens of any text. What it stores for its requests it deletes again.
    """

    def __init__(
        self, replicas: Replicas, encoder: Encoder, passage_kv: PassageKV, *, token_ids: Sequence[int]
    ) -> None:
        self._replicas, self._encoder, self._passage_kv = replicas, encoder, passage_kv
        self._token_ids = tuple(token_ids)
        if len(self._token_ids) < NUM_TOKENS:
            raise ValueError(f"{len(self._token_ids)} tokens are given; the requests take {NUM_TOKENS}")
        self._rounds: dict[str, list[list[CostSample]]] = {}
        self._fitted: tuple[str, CostModel | None] | None = None
        self._task: asyncio.Task[None] | None = None

    def model(self, info: EngineInfo) -> CostModel | None:
        """This engine's costs; None where they are not known."""
        return self._fitted[1] if self._fitted and self._fitted[0] == info.model_fingerprint else None

    def start(self) -> None:
        """Begin to look for an engine to time."""
        self._task = asyncio.create_task(self._watch(), name="kvblend cost fit")

    async def close(self) -> None:
        await end_task(self._task)

    async def _watch(self) -> None:
        pause_s = LOOK_EVERY_S
        while True:
            try:
                replica, facts = await self._replicas.choose()
                if facts.info is not None and (self._fitted is None or self._fitted[0] != facts.info.model_fingerprint):
                    pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                    await self._fit_once(replica, facts, facts.info)
            except EngineUnavailableError:
                pass
            except Exception:  # this task lives as long as the service
                logger.exception("the timing of requests failed; it is tried again")
            await asyncio.sleep(pause_s if self._fitted is None else LOOK_EVERY_S)

    async def _fit_once(self, replica: Replica, facts: EngineFacts, info: EngineInfo) -> None:
        head, short, long = self._passages
        rounds = self._rounds.setdefault(info.model_fingerprint, [])
        if facts.max_model_len <= HEAD + LONG + QUESTION:
            self._fitted = info.model_fingerprint, None
            return
        try:
            for passage in (head, short, long):
                if await self._encoder.encode_one(EncodeRun.alone(NO_CONTEXT, passage)) is EncodeResult.FAILED:
                    raise EngineUnavailableError("a passage to time requests with was not encoded")
            while len(rounds) < NUM_ROUNDS:
                await replica.load.idle_for(IDLE_S)
                timed = await replica.load.while_idle(self._round(replica, facts))
                if timed is None:
                    return  # the rounds that are done are kept for the next attempt
                rounds.append(timed)
        except EngineUnavailableError:
            raise
        except KVBlendError as error:
            logger.warning("requests cannot be timed, so none is prefilled for being short: %s", error.message)
            self._fitted = info.model_fingerprint, None
            return
        finally:
            names = [(NO_CONTEXT.hash, token_hash(passage)) for passage in (head, short, long)]
            await self._passage_kv.delete([info.model_fingerprint], names)
        fastest = [min(samples, key=lambda sample: sample.ttft_ms) for samples in zip(*rounds, strict=True)]
        full, reuse, repair = (fastest[0], fastest[1]), (fastest[2], fastest[3]), (fastest[4], fastest[5])
        model = CostModel.fit(full=full, reuse=reuse, repair=repair)
        logger.info("costs fitted: %s", model)
        self._fitted = info.model_fingerprint, model
        self._rounds.clear()

    @property
    def _passages(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        ids = self._token_ids
        return ids[:HEAD], ids[HEAD : HEAD + SHORT], ids[HEAD + SHORT : HEAD + SHORT + LONG]

    async def _round(self, replica: Replica, facts: EngineFacts) -> list[CostSample]:
        """A short and a long full prefill, full reuse, and blend that recomputes."""
        _, short, long = self._passages
        question = self._token_ids[HEAD + SHORT + LONG :][:QUESTION]
        return [
            await self._full(replica, facts, short, question),
            await self._full(replica, facts, long, question),
            await self._blend(replica, facts, short, question, ratio=0.0),
            await self._blend(replica, facts, long, question, ratio=0.0),
            await self._blend(replica, facts, short, question, ratio=REPAIR_RATIO),
            await self._blend(replica, facts, long, question, ratio=REPAIR_RATIO),
        ]

    async def _full(
        self, replica: Replica, facts: EngineFacts, passage: tuple[int, ...], question: tuple[int, ...]
    ) -> CostSample:
        prompt = [*self._passages[0], *passage, *question]
        return CostSample(await self._ttft_ms(replica, facts, prompt), Work(num_prefilled=len(prompt)))

    async def _blend(
        self, replica: Replica, facts: EngineFacts, passage: tuple[int, ...], question: tuple[int, ...], *, ratio: float
    ) -> CostSample:
        passages = [PromptPassage.behind(NO_CONTEXT, token_ids) for token_ids in (self._passages[0], passage)]
        prompt = BlendPrompt(Frame((), question), passages)
        report_id = uuid.uuid4().hex
        order = prompt.order(recompute_ratio=ratio, report_id=report_id)
        ttft_ms = await self._ttft_ms(replica, facts, prompt.token_ids, order)
        report = await replica.control.report(report_id, wait_s=REPORT_WAIT_S)
        if report is None or report.outcome != "blended":
            raise KVBlendError(f"a request to time was not blended: {report.reason if report else 'no report'}")
        work = Work(
            num_prefilled=len(question),
            num_reused=report.reused_tokens,
            num_probed=len(question) if ratio else 0,
            num_repaired=report.recomputed_tokens,
        )
        return CostSample(ttft_ms, work)

    @staticmethod
    async def _ttft_ms(
        replica: Replica, facts: EngineFacts, prompt: list[int], order: KVBlendParams | None = None
    ) -> float:
        salt = uuid.uuid4().hex  # nothing of it is in the prefix cache
        body = {"model": facts.model, "prompt": prompt, "max_tokens": 1, "temperature": 0.0, "cache_salt": salt}
        if order is not None and facts.info is not None:
            body = with_order(body, order, prompt, salted=facts.info.salted, proxied=facts.info.proxied)
        began = time.perf_counter()
        async with aclosing(replica.engine.stream("/v1/completions", body)) as chunks:
            async for _ in chunks:
                return (time.perf_counter() - began) * 1000
        raise KVBlendError("a request to time gave no token")
