"""The blends of a worker, run a step's share at a time."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor
from vllm.logger import init_logger

from kvblend.blend import BeforeLayer, BlendModel, probe, repair
from kvblend.core.report import BlendReport
from kvblend.store import TieredStore
from kvblend.vllm_connector.worker.blend import BlendJob, PassageSource
from kvblend.vllm_connector.worker.clock import StepClock

__all__ = ["BeginLoading", "BlendQueue"]

logger = init_logger("vllm.kvblend.blend")

Agree = Callable[[list[bool]], list[bool]]
"""What holds on every rank, of what holds on this one; all ranks ask the same."""


class Loading(Protocol):
    """Passages of a step's new blends on their way in, a layer when the first pass reaches it.

    `passages`: (job, which of its spans), of those that are there.
    """

    passages: list[tuple[BlendJob, int]]

    def layer(self, layer: int) -> None:
        """Have one layer there; nothing in a pass that is not the first."""

    def complete(self) -> None:
        """Have all layers there."""

    @property
    def is_complete(self) -> bool: ...

    def failures(self) -> dict[int, str]:
        """What is wrong with passages of which this rank's part cannot be used, by place in `passages`."""

    def keep(self, store: TieredStore) -> None:
        """Leave what came in where the next load finds it sooner, and put aside what is corrupt."""


BeginLoading = Callable[[Sequence[Any]], AbstractContextManager[Loading]]
"""Of jobs that are settled; they are all of the kind that the worker makes."""


class BlendQueue:
    """Runs blends first come, first served, about `tokens_per_step` tokens a step, several requests in one pass."""

    def __init__(
        self,
        model: BlendModel,
        source: PassageSource,
        clock: StepClock,
        *,
        loading: BeginLoading,
        tokens_per_step: int,
        agree: Agree,
    ) -> None:
        self._model, self._source, self._clock, self._loading = model, source, clock, loading
        self._tokens_per_step, self._agree = tokens_per_step, agree
        self._jobs: dict[str, BlendJob] = {}
        self._begun: set[BlendJob] = set()
        """Jobs whose passages are on their way, or in."""
        self._ending: list[BlendJob] = []
        self.finished: set[str] = set()
        """Requests whose blend has ended since the caller last took them, the failed ones among them."""
        self.failed: dict[str, str] = {}
        self.reports: dict[str, BlendReport] = {}

    def __len__(self) -> int:
        return len(self._jobs) + len(self._ending)

    def add(self, job: BlendJob) -> None:
        self._jobs[job.task.request_id] = job

    def drop(self, request_id: str) -> None:
        """Forget an aborted request's blend: vLLM frees its blocks when its load ends."""
        job = self._jobs.pop(request_id, None)
        if job is not None:
            self._end(job)
            self._clock.forget(job)
            self.finished.add(request_id)

    def step(self) -> None:
        """Do one engine step's share of the work."""
        batch = self._admit()
        if batch:
            try:
                self._run(batch)
            except Exception as error:  # the worker's edge: whatever went wrong, vLLM can still prefill
                self._fail(batch, error)
        for job in [job for job in self._ending if self._clock.is_over(job)]:
            self._ending.remove(job)
            self.reports[job.task.request_id] = job.report
            self.finished.add(job.task.request_id)

    def _admit(self) -> list[BlendJob]:
        """The blends of this step: from the oldest on, as many as the step's token budget holds, at least one."""
        batch: list[BlendJob] = []
        room = self._tokens_per_step
        for job in list(self._jobs.values()):
            cost = job.expected_cost if job.todo is None else len(job.todo)
            if batch and cost > room:
                break
            try:
                if not job.reserve():
                    break
            except Exception as error:  # no memory for this one
                self._fail([job], error)
                continue
            batch.append(job)
            room -= cost
        return batch

    def _begin_ahead(self, batch: Sequence[BlendJob]) -> None:
        """Let the next blend's passages come in while this step's are repaired, where jobs load by themselves."""
        waiting = next((job for job in self._jobs.values() if job not in batch), None)
        if waiting is None or not waiting.loads_ahead:
            return
        try:
            if waiting.reserve():
                self._begin(waiting)
        except Exception as error:  # as in `step`
            self._fail([waiting], error)

    def _begin(self, job: BlendJob) -> None:
        if job in self._begun:
            return
        with self._clock.host([job], "load"):
            there = job.load(self._source)
            job.settle(self._agree(there))
        self._begun.add(job)

    def _end(self, job: BlendJob) -> None:
        job.close()
        self._begun.discard(job)

    def _run(self, batch: Sequence[BlendJob]) -> None:
        new = [job for job in batch if job.todo is None]
        for job in new:
            self._begin(job)
        self._begin_ahead(batch)
        with self._loading(new) as loading:
            scores = self._probe(new, loading)
            was_probed = loading.is_complete
            lost = self._lost(loading) if was_probed else set()
            for job in new:
                if job not in lost:
                    job.select(scores.get(job.task.request_id))
            self._repair([job for job in batch if job not in lost], self._layer(new, loading))
            with self._clock.wait(new, "load"):
                loading.complete()
            lost = lost if was_probed else self._lost(loading)
            loading.keep(self._source.store)
        for job in batch:
            if job in lost:
                job.todo = None  # from the start again in the next step, without what was lost
                self._begun.discard(job)
            elif job.todo is not None and len(job.todo) == 0:
                with self._clock.passes([job], "load"):
                    job.finish()
                del self._jobs[job.task.request_id]
                self._end(job)
                self._ending.append(job)

    def _probe(self, new: Sequence[BlendJob], loading: Loading) -> dict[str, Tensor]:
        """Scores by request, on the host: the one point where it waits for the device."""
        probed = [job for job in new if job.needs_probe]
        if not probed:
            return {}
        with self._clock.passes(probed, "probe"):
            scores = probe(self._model, [job.question_rows() for job in probed], before_layer=self._layer(new, loading))
        return {job.task.request_id: own.cpu() for job, own in zip(probed, scores, strict=True)}

    def _repair(self, batch: Sequence[BlendJob], before_layer: BeforeLayer) -> None:
        room, parts = self._tokens_per_step, []
        for job in batch:
            assert job.todo is not None
            if room > 0 and len(job.todo):
                parts.append(job.take_rows(room))
                room -= len(parts[-1].positions)
        if parts:
            with self._clock.passes(batch, "repair"):
                repair(self._model, parts, before_layer=before_layer)

    def _layer(self, new: Sequence[BlendJob], loading: Loading) -> BeforeLayer:
        """Has a layer there when a pass reaches it; the time that it waits for it is the load's."""

        def before_layer(layer: int) -> None:
            with self._clock.wait(new, "load"):
                loading.layer(layer)

        return before_layer

    def _lost(self, loading: Loading) -> set[BlendJob]:
        """Jobs of which a passage turned out, on some rank, not to be usable while passes already read it."""
        if not loading.passages:
            return set()
        failures = loading.failures()
        sound = self._agree([place not in failures for place in range(len(loading.passages))])
        lost: set[BlendJob] = set()
        for place, (job, index) in enumerate(loading.passages):
            if not sound[place]:
                job.note_lost(index, failures.get(place, "another rank's part of it cannot be used"))
                lost.add(job)
        return lost

    def _fail(self, batch: Sequence[BlendJob], error: Exception) -> None:
        names = [job.task.request_id for job in batch]
        logger.error("A blend failed; its requests are prefilled: %s", names, exc_info=error)
        for job in batch:
            self._end(job)
            self._clock.forget(job)
            self._jobs.pop(job.task.request_id, None)
            self.failed[job.task.request_id] = f"the blend failed: {error}"
            self.finished.add(job.task.request_id)
