"""Watch what blending costs in quality: some answers are compared with a full prefill while nothing else runs."""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from kvblend.api.background import end_task
from kvblend.api.engine.answer_tokens import NUM_LIKELIEST
from kvblend.api.engine.replicas import EngineFacts, Replica
from kvblend.api.metrics import Metrics
from kvblend.api.quality.answer_sample import AnswerSample, Comparison, can_be_sampled
from kvblend.core.calibration import QualityTarget
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
    one. Answers that are held to targets, whose mean KL is above the mean of theirs, or whose tokens or first tokens
    agree with full prefill less, are warned of, once until that is over.
    """

    def __init__(self, metrics: Metrics, *, ratio: float) -> None:
        self._metrics = metrics
        self._ratio = ratio
        self._waiting: deque[tuple[AnswerSample, QualityTarget | None]] = deque()
        self._any_waiting = asyncio.Event()
        self._compared: deque[Comparison] = deque(maxlen=WINDOW)
        self._held: deque[tuple[Comparison, QualityTarget]] = deque(maxlen=WINDOW)
        self._num_compared = 0
        self._misses_target = False
        self._comparing = False
        self._random = random.Random()
        self._task: asyncio.Task[None] | None = None

    @property
    def state(self) -> GuardState | None:
        """What has been found; None where the guard is off."""
        if not self._ratio:
            return None
        held, targets = [one for one, _ in self._held], [target for _, target in self._held]
        return GuardState(
            num_compared=self._num_compared,
            mean_kl=_mean(one.kl for one in self._compared),
            agreement=_mean(one.agreement for one in self._compared),
            first_agreement=_mean(one.first_agrees for one in self._compared),
            num_held=len(self._held),
            mean_held_kl=_mean(one.kl for one in held),
            mean_target_kl=_mean(target.kl for target in targets),
            held_agreement=_mean(one.agreement for one in held),
            held_first_agreement=_mean(one.first_agrees for one in held),
            target_agreement=_mean(target.agreement for target in targets),
            misses_target=self._misses_target,
        )

    @property
    def is_working(self) -> bool:
        """Whether it waits for idle time, or uses it: other work that can wait should leave it to the guard."""
        return self._comparing or bool(self._waiting)

    def start(self) -> None:
        """Begin to compare, where any answer is sampled at all."""
        if self._ratio:
            self._task = asyncio.create_task(self._run(), name="kvblend live guard")

    async def close(self) -> None:
        await end_task(self._task)

    def sample(
        self, replica: Replica, facts: EngineFacts, body: Mapping[str, Any], *, prompt_ids: Sequence[int]
    ) -> AnswerSample | None:
        """The sample that a request with a plan, about to be sent, will be; None where it is not drawn or cannot be
        one. One in `ratio` is drawn.

        The request is then sent with its route's `token_fields` besides.
        """
        if self._random.random() >= self._ratio or facts.info is None:
            return None
        if facts.info.max_raw_logprobs < NUM_LIKELIEST or not can_be_sampled(body):
            return None
        return AnswerSample(replica, facts, prompt_ids)

    def add(self, sample: AnswerSample, report: BlendReport, *, target: QualityTarget | None) -> None:
        """Queue an ended answer, where its context was blended; `target` is what it is held to."""
        if report.outcome != "blended" or not report.reused_tokens or not sample.tokens:
            return
        if len(self._waiting) == MAX_WAITING:
            self._waiting.popleft()
            self._metrics.guard_lost("dropped")
        self._waiting.append((sample, target))
        self._any_waiting.set()

    async def _run(self) -> None:
        while True:
            await self._any_waiting.wait()
            replica = self._waiting[0][0].replica
            await replica.load.idle_for(IDLE_S)
            if self._waiting[0][0].replica is not replica:  # it has made room for a newer one
                continue
            sample, target = self._waiting.popleft()
            if not self._waiting:
                self._any_waiting.clear()
            self._comparing = True
            try:
                self._end(await replica.load.while_idle(self._compare(sample)), target)
            except KVBlendError as error:
                logger.warning("the live guard could not compare an answer: %s", error.message)
                self._metrics.guard_lost("failed")
            except Exception:  # this task lives as long as the service
                logger.exception("the live guard could not compare an answer")
                self._metrics.guard_lost("failed")
            finally:
                self._comparing = False

    @staticmethod
    async def _compare(sample: AnswerSample) -> Comparison:
        """Compare it. Raises KVBlendError where its server now serves something else, or does not answer."""
        if await sample.replica.facts() != sample.facts:
            raise KVBlendError("its vLLM server has another model or other settings by now")
        return await sample.compare()

    def _end(self, found: Comparison | None, target: QualityTarget | None) -> None:
        if found is None:
            self._metrics.guard_lost("abandoned")
            return
        self._compared.append(found)
        self._num_compared += 1
        if target is not None:
            self._held.append((found, target))
        misses = _missed(self._held) if len(self._held) >= MIN_COMPARED else None
        if misses and not self._misses_target:
            logger.warning(
                "answers diverge from full prefill: of the last %d compared %s; calibrate the model again, on "
                "questions like these",
                len(self._held),
                misses,
            )
        self._misses_target = misses is not None
        self._metrics.guard_compared(found, last=self._compared, misses_target=self._misses_target)


def _missed(held: Iterable[tuple[Comparison, QualityTarget]]) -> str | None:
    """Which target answers miss together, in words; None where they miss none."""
    found, targets = zip(*held, strict=True)
    kl, target_kl = fmean(one.kl for one in found), fmean(target.kl for target in targets)
    if kl > target_kl:
        return f"the mean KL is {kl:.3g}, above their target {target_kl:.3g}"
    target = fmean(target.agreement for target in targets)
    for what, share in (
        ("tokens", fmean(one.agreement for one in found)),
        ("first tokens", fmean(one.first_agrees for one in found)),
    ):
        if share < target:
            return f"{share:.2f} of the {what} are full prefill's, below their target {target:.2f}"
    return None


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return fmean(found) if found else None
