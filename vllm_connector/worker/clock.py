"""How long the passes of blends take, in the reports of all that they serve."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch

from kvblend.vllm_connector.worker.blend import Blend

__all__ = ["PassClock"]

Step = Literal["probe", "repair"]


class PassClock:
    """On CUDA a pass is timed by events, which nobody waits for: a blend's times may be known after it is done."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._events: dict[str, list[tuple[Step, int, torch.cuda.Event, torch.cuda.Event]]] = {}

    @contextmanager
    def time(self, blends: Sequence[Blend], step: Step) -> Iterator[None]:
        """Time what the caches' device does."""
        began_ns = time.time_ns()
        if not self._is_cuda:
            began = time.perf_counter()
            yield
            spent_ms = (time.perf_counter() - began) * 1e3
            for blend in blends:
                _add(blend, step, began_ns, spent_ms)
            return
        stream = torch.cuda.current_stream()
        began_at = stream.record_event(_timed_event())
        yield
        ended_at = stream.record_event(_timed_event())
        for blend in blends:
            self._events.setdefault(blend.task.request_id, []).append((step, began_ns, began_at, ended_at))

    def is_over(self, blend: Blend) -> bool:
        """Whether all that was timed of a blend is done; its report is complete then."""
        events = self._events.get(blend.task.request_id, [])
        if events and not events[-1][3].query():  # type: ignore[no-untyped-call]
            return False
        for step, began_ns, began, ended in events:
            _add(blend, step, began_ns, began.elapsed_time(ended))
        self.forget(blend)
        return True

    def forget(self, blend: Blend) -> None:
        self._events.pop(blend.task.request_id, None)


def _timed_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _add(blend: Blend, step: Step, began_ns: int, spent_ms: float) -> None:
    steps = blend.report.steps_ms
    setattr(steps, step, getattr(steps, step) + spent_ms)
    blend.timed_steps.part(step, began_ns, spent_ms)
