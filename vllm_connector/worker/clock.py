"""How long the steps of blends take, in the reports of all jobs that wait for them."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch

from kvblend.vllm_connector.worker.blend import BlendJob

__all__ = ["StepClock"]

Step = Literal["load", "probe", "repair"]


class StepClock:
    """On CUDA a pass is timed by events, which nobody waits for: a job's times are known when its work is done."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._events: dict[str, list[tuple[Step, torch.cuda.Event, torch.cuda.Event]]] = {}
        self._inner_ms = 0.0
        """What was timed by itself within the step that is being timed, and does not count in it."""

    @contextmanager
    def host(self, jobs: Sequence[BlendJob], step: Step) -> Iterator[None]:
        """Time what this thread does, less what is timed by itself within."""
        outer_ms, self._inner_ms = self._inner_ms, 0.0
        began = time.perf_counter()
        try:
            yield
        finally:
            spent_ms = (time.perf_counter() - began) * 1e3
            _add(jobs, step, spent_ms - self._inner_ms)
            self._inner_ms = outer_ms + spent_ms

    @contextmanager
    def passes(self, jobs: Sequence[BlendJob], step: Step) -> Iterator[None]:
        """Time what the caches' device does."""
        if not self._is_cuda:
            with self.host(jobs, step):
                yield
            return
        stream = torch.cuda.current_stream()
        began = stream.record_event(_timed_event())
        yield
        ended = stream.record_event(_timed_event())
        for job in jobs:
            self._events.setdefault(job.task.request_id, []).append((step, began, ended))

    @contextmanager
    def wait(self, jobs: Sequence[BlendJob], step: Step) -> Iterator[None]:
        """Time what a pass waits for within it. On CUDA the device waits, and the pass's own time has it."""
        if self._is_cuda:
            yield
            return
        with self.host(jobs, step):
            yield

    def is_over(self, job: BlendJob) -> bool:
        """Whether all that was timed of a job is done; its report is complete then."""
        events = self._events.get(job.task.request_id, [])
        if events and not events[-1][2].query():  # type: ignore[no-untyped-call]
            return False
        for step, began, ended in events:
            _add([job], step, began.elapsed_time(ended))
        self.forget(job)
        return True

    def forget(self, job: BlendJob) -> None:
        self._events.pop(job.task.request_id, None)


def _timed_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _add(jobs: Sequence[BlendJob], step: Step, spent_ms: float) -> None:
    for job in jobs:
        steps = job.report.steps_ms
        setattr(steps, step, getattr(steps, step) + spent_ms)
