"""Watch what blending costs in quality: some answers are compared with a full prefill while nothing else runs."""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from kvblend.api.answer_tokens import NUM_LIKELIEST
from kvblend.api.background import end_task
from kvblend.api.guard_sample import GuardSample, can_be_sampled
from kvblend.api.metrics import Metrics
from kvblend.api.replica import EngineFacts, Replica
from kvblend.core.errors import KVBlendError
from kvblend.core.report import BlendReport
from kvblend.core.rest import GuardState

__all__ = ["LiveGuard"]

logger = logging.getLogger(__name__)

MAX_WAITING = 16
IDLE_S = 1.0
WINDOW = 100
MIN_COMPARED = 10
"""No verdict on fewer answers that are held to a target."""


class LiveGuard:
    """Compares sampled answers one at a time, each on the server that gave it, once that is idle.

    A request to the server ends a comparison at once and its sample is lost; the oldest sample makes room for a new
    one. Answers that are held to a target, whose mean KL is above the mean of their targets, are warned of, once until
    it is below again.
    """

    def __init__(self, metrics: Metrics, *, ratio: float) -> None:
        self._metrics = metrics
        self._ratio = ratio
        self._waiting: deque[tuple[GuardSample, float | None]] = deque()
        self._any_waiting = asyncio.Event()
        self._kls: deque[float] = deque(maxlen=WINDOW)
        self._held: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._num_compared = 0
        self._above_target = False
        self._random = random.Random()
        self._task: asyncio.Task[None] | None = None

    @property
    def state(self) -> GuardState | None:
        """What has been found; None where the guard is off."""
        if not self._ratio:
            return None
        return GuardState(
            num_compared=self._num_compared,
            mean_kl=fmean(self._kls) if self._kls else None,
            num_held=len(self._held),
            mean_held_kl=fmean(kl for kl, _ in self._held) if self._held else None,
            mean_target_kl=fmean(target for _, target in self._held) if self._held else None,
            above_target=self._above_target,
        )

    def start(self) -> None:
        """Begin to compare, where any answer is sampled at all."""
        if self._ratio:
            self._task = asyncio.create_task(self._run(), name="kvblend live guard")

    async def close(self) -> None:
        await end_task(self._task)

    def sample(self, replica: Replica, facts: EngineFacts, body: Mapping[str, Any]) -> GuardSample | None:
        """The sample that a request about to be sent will be; None where it is not drawn or cannot be one.

        The request is then sent with `TOKEN_FIELDS` besides. One in `ratio` is drawn of those that carry a plan.
        """
        if self._random.random() >= self._ratio or "kv_transfer_params" not in body or facts.info is None:
            return None
        if facts.info.max_raw_logprobs < NUM_LIKELIEST or not can_be_sampled(body):
            return None
        return GuardSample(replica, facts, body["prompt"])

    def add(self, sample: GuardSample, report: BlendReport, *, target_kl: float | None) -> None:
        """Queue an ended answer, where its context was blended; `target_kl` is what it is held to."""
        if report.outcome != "blended" or not report.reused_tokens or not sample.tokens:
            return
        if len(self._waiting) == MAX_WAITING:
            self._waiting.popleft()
            self._metrics.guard_lost("dropped")
        self._waiting.append((sample, target_kl))
        self._any_waiting.set()

    async def _run(self) -> None:
        while True:
            await self._any_waiting.wait()
            replica = self._waiting[0][0].replica
            await replica.load.idle_for(IDLE_S)
            if self._waiting[0][0].replica is not replica:  # it has made room for a newer one
                continue
            sample, target_kl = self._waiting.popleft()
            if not self._waiting:
                self._any_waiting.clear()
            try:
                self._end(await replica.load.while_idle(self._compare(sample)), target_kl)
            except KVBlendError as error:
                logger.warning("the live guard could not compare an answer: %s", error.message)
                self._metrics.guard_lost("failed")
            except Exception:  # this task lives as long as the service
                logger.exception("the live guard could not compare an answer")
                self._metrics.guard_lost("failed")

    @staticmethod
    async def _compare(sample: GuardSample) -> float:
        """The sample's KL. Raises KVBlendError where its server now serves something else, or does not answer."""
        if await sample.replica.facts() != sample.facts:
            raise KVBlendError("its vLLM server has another model or other settings by now")
        return await sample.kl()

    def _end(self, kl: float | None, target_kl: float | None) -> None:
        if kl is None:
            self._metrics.guard_lost("abandoned")
            return
        self._kls.append(kl)
        self._num_compared += 1
        if target_kl is not None:
            self._held.append((kl, target_kl))
        above = False
        if len(self._held) >= MIN_COMPARED:
            mean_kl, mean_target = (fmean(values) for values in zip(*self._held, strict=True))
            above = mean_kl > mean_target
            if above and not self._above_target:
                logger.warning(
                    "answers diverge from full prefill: mean KL %.3g of the last %d compared, above their target %.3g; "
                    "calibrate the model again, on questions like these",
                    mean_kl,
                    len(self._held),
                    mean_target,
                )
        self._above_target = above
        self._metrics.guard_compared(kl, mean_kl=fmean(self._kls), above_target=above)
