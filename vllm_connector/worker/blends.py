"""The blends of a worker, each step of the engine a step further."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from functools import partial

from torch import Tensor
from vllm.logger import init_logger

from kvblend.blend import BlendModel, Pass
from kvblend.core.report import BlendReport
from kvblend.vllm_connector.engine.ranks import Ranks
from kvblend.vllm_connector.log_ids import log_ids
from kvblend.vllm_connector.timed_step import TimedStep
from kvblend.vllm_connector.worker.blend import Blend, Readiness, State
from kvblend.vllm_connector.worker.clock import PassClock
from kvblend.vllm_connector.worker.stager import PassageSource

__all__ = ["REST_S", "Blends"]

logger = init_logger("vllm.kvblend.blend")

REST_S = 0.001
"""As long as vLLM itself sleeps after a step that ran nothing, where it is a process of its own."""


class Blends:
    """Moves every blend to its next state when it is ready for it, and runs the passes, several requests in one.

    Ranks move alike: what a rank finds out by itself (memory, files, errors) they agree on first. An error in a pass
    over several blends is blamed on none of them: each is tried again alone, and the one that fails alone has failed.
    """

    def __init__(self, model: BlendModel, source: PassageSource, clock: PassClock, ranks: Ranks) -> None:
        self._model, self._source, self._clock, self._ranks = model, source, clock, ranks
        self._blends: dict[str, Blend] = {}
        self._alone: set[str] = set()
        """Blends of a pass that failed: each has the next passes to itself."""
        self._timed: list[Blend] = []
        """Blends that are done, but for the times in their report."""
        self.finished: set[str] = set()
        """Requests whose blend has ended since the caller last took them, the failed ones among them."""
        self.failed: dict[str, str] = {}
        self.reports: dict[str, BlendReport] = {}
        self.steps: dict[str, list[TimedStep]] = {}
        """Of blends with a report, where their requests are traced."""

    def __len__(self) -> int:
        return len(self._blends) + len(self._timed)

    def add(self, request_id: str, make: Callable[[], Blend]) -> None:
        """Take a blend up; where it cannot be made, its request is prefilled."""
        try:
            self._blends[request_id] = self._ranks.attempt(make)
        except Exception as error:
            self.refuse(request_id, f"the blend failed: {error}", error)

    def refuse(self, request_id: str, reason: str, error: Exception | None = None) -> None:
        """Let vLLM prefill a request of which there is no blend."""
        logger.error("Request %s is prefilled: %s", request_id, reason, exc_info=error, extra=log_ids(request_id))
        self.failed[request_id] = reason
        self.finished.add(request_id)

    def give_up(self, new: Iterable[str], reason: str) -> None:
        """Fail every blend, and of the `new` requests those that there is none of."""
        for blend in self._blends.values():
            blend.fail(reason)
        for request_id in new:
            if request_id not in self._blends and request_id not in self.finished:
                self.refuse(request_id, reason)
        self._end()

    def drop(self, request_id: str) -> None:
        """Forget an aborted request's blend: vLLM frees its blocks when its load ends."""
        if request_id in self._blends:
            self._blends[request_id].drop()

    def rest(self) -> None:
        """In a step that runs nothing: leave the interpreter to what is staged, for a moment or until it is there."""
        staging = [blend.staging for blend in self._blends.values() if blend.state is State.STAGING]
        if staging and not self._running():
            wait([own for own in staging if own is not None], timeout=REST_S, return_when=FIRST_COMPLETED)

    def step(self, room: int, *, longest: int | None = None) -> None:
        """Do one engine step's share of the work: passes over about `room` tokens.

        `longest`: how many one blend may have where it is the first in line; by default `room`.
        """
        self._advance()
        batch = self._running()
        if batch:
            try:
                batch = self._ranks.attempt(lambda: self._batch(room))
                self._run(batch, room, longest or room)
            except Exception as error:  # on every rank: what fails on one fails on all of them
                self._blame(batch, error)
        self._end()

    def _run(self, batch: Sequence[Blend], room: int, longest: int) -> None:
        """The step's passes, over `room` tokens or, of a blend that has them to itself, `longest`."""
        probing = [blend for blend in batch if blend.state is State.PROBING]
        scores = self._probe([blend for blend in probing if blend.needs_probe])
        self._each(probing, lambda blend: blend.select(scores.get(blend.task.request_id), self._model.flops))
        self._repair([blend for blend in batch if blend.state is State.REPAIRING], room, longest)
        whole = [blend for blend in batch if blend.state is State.REPAIRING and len(blend.todo) == 0]
        self._each(whole, lambda blend: blend.finish())

    def _advance(self) -> None:
        """Poll what is opened or staging, and move on what is ready on every rank."""
        waiting = [blend for blend in self._blends.values() if blend.state in (State.OPENED, State.STAGING)]
        here = [blend.poll() for blend in waiting]
        agreed = iter(self._ranks.least([number for own in here for number in own]))
        ready = []
        for blend in waiting:
            readiness, *there = (next(agreed) for _ in range(1 + 2 * len(blend.spans)))
            if readiness == Readiness.FAILED:
                blend.fail("the blend failed on another rank")
            elif readiness == Readiness.READY:
                ready.append((blend, there))
        spans = {blend.task.request_id: there for blend, there in ready}
        opened = [blend for blend, _ in ready if blend.state is State.OPENED]
        staged = [blend for blend, _ in ready if blend.state is State.STAGING]
        self._each(opened, lambda blend: blend.stage(self._source))
        self._each(staged, lambda blend: blend.settle(spans[blend.task.request_id]))

    def _running(self) -> list[Blend]:
        return [blend for blend in self._blends.values() if blend.state in (State.PROBING, State.REPAIRING)]

    def _batch(self, room: int) -> list[Blend]:
        """The blends of this step's passes, the first in line first: as many as `room` holds whole, at least one.

        A large one, of which a step does a part, leaves half the room to those behind it.
        """
        running = self._running()
        alone = [blend for blend in running if blend.task.request_id in self._alone]
        if alone:
            return alone[:1]
        batch: list[Blend] = []
        for blend in running:
            cost = blend.cost
            if batch and cost > room:
                continue
            batch.append(blend)
            room -= cost if cost <= room else room // 2
        return batch

    def _probe(self, batch: Sequence[Blend]) -> dict[str, Tensor]:
        """Scores by request, on the host: the one point where it waits for the device."""
        if not batch:
            return {}
        with self._clock.time(batch, "probe"):
            ready = self._ranks.attempt(lambda: Pass.of([blend.question_rows() for blend in batch]))
            scores = ready.probe(self._model)
        return {blend.task.request_id: own.cpu() for blend, own in zip(batch, scores, strict=True)}

    def _repair(self, batch: Sequence[Blend], room: int, longest: int) -> None:
        """Repair what the batch has to do, in one pass: those that end with it first, then parts of larger ones."""
        if len(batch) == 1:
            room = longest
        parts: list[tuple[Blend, int]] = []
        for blend in sorted(batch, key=lambda blend: len(blend.todo)):
            count = min(room, len(blend.todo))
            if count:
                parts.append((blend, count))
                room -= count
        if not parts:
            return
        with self._clock.time([blend for blend, _ in parts], "repair"):
            ready = self._ranks.attempt(lambda: Pass.of([blend.rows(count) for blend, count in parts]))
            ready.repair(self._model)
        for blend, count in parts:
            blend.repaired(count)

    def _each(self, blends: Iterable[Blend], work: Callable[[Blend], None]) -> None:
        """Do on every rank what concerns one blend alone; where it fails, that one has failed."""
        for blend in blends:
            try:
                self._ranks.attempt(partial(work, blend))
            except Exception as error:
                blend.fail(f"the blend failed: {error}", error)

    def _blame(self, batch: Sequence[Blend], error: Exception) -> None:
        names = [blend.task.request_id for blend in batch]
        if len(batch) == 1 or self._alone.issuperset(names):
            for blend in batch:
                blend.fail(f"the blend failed: {error}", error)
            return
        logger.warning("A pass over several blends failed; each is tried alone: %s", names, exc_info=error)
        self._alone.update(names)

    def _end(self) -> None:
        """Tell who is done, who failed and who was dropped, as soon as nothing of theirs touches their blocks."""
        for request_id, blend in list(self._blends.items()):
            if not blend.is_over:
                continue
            del self._blends[request_id]
            self._alone.discard(request_id)
            self.finished.add(request_id)
            if blend.state is State.DONE:
                self._timed.append(blend)
                continue
            self._clock.forget(blend)
            if blend.failure is not None:
                self.failed[request_id] = blend.failure
        for blend in [blend for blend in self._timed if self._clock.is_over(blend)]:
            self._timed.remove(blend)
            if self._source.loading is not None:
                report = blend.report
                self._source.loading.repaired(report.recomputed_tokens, report.steps_ms.repair / 1e3)
            self.reports[blend.task.request_id] = blend.report
            if blend.task.trace_id is not None:
                self.steps[blend.task.request_id] = blend.timed_steps.all()
