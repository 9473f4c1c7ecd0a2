"""When the steps of a blend took place, as the worker half tells the scheduler half, which makes spans of them."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

__all__ = ["Facts", "TimedStep", "TimedSteps"]

Facts = Mapping[str, str | int]


@dataclass(frozen=True)
class TimedStep:
    """A step from its first moment to its last, in nanoseconds since the epoch; `spent_ms` of that it was worked on, in
    `num_parts` engine steps.

    `within`: the step that it is a part of. `facts`: what else is to be said of it.
    """

    name: str
    began_ns: int
    ended_ns: int
    spent_ms: float
    num_parts: int = 1
    within: str | None = None
    facts: Facts = field(default_factory=dict)


class TimedSteps:
    """The steps of one blend so far: written by the engine's thread, or by the staging thread that it waits for."""

    def __init__(self) -> None:
        self._steps: list[TimedStep] = []

    def part(self, name: str, began_ns: int, spent_ms: float) -> None:
        """Add a part to a step, which its first one begins."""
        ended_ns = began_ns + round(spent_ms * 1e6)
        for place, known in enumerate(self._steps):
            if known.name == name:
                self._steps[place] = replace(
                    known, ended_ns=ended_ns, spent_ms=known.spent_ms + spent_ms, num_parts=known.num_parts + 1
                )
                return
        self._steps.append(TimedStep(name, began_ns, ended_ns, spent_ms))

    def ended(self, name: str, seconds: float, facts: Facts, *, within: str) -> None:
        """Note a step within another one that has ended just now."""
        ended_ns = time.time_ns()
        began_ns = ended_ns - round(seconds * 1e9)
        self._steps.append(TimedStep(name, began_ns, ended_ns, seconds * 1e3, within=within, facts=facts))

    def all(self) -> list[TimedStep]:
        return list(self._steps)
