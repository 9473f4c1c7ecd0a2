"""A blend's steps beside what each must cost at least, as ratios within one run: 1 is the floor, less is better."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["TARGETS", "Floor", "step_efficiencies"]

TARGETS: Mapping[str, float] = MappingProxyType(
    {"repair_efficiency": 1.25, "load_efficiency": 3.0, "probe_efficiency": 1.5}
)
"""The most that each ratio may be."""


@dataclass(frozen=True)
class Floor:
    """What the steps are held to, in milliseconds, all measured in the run that the steps were measured in.

    `prefill_token`: full prefill's time to first token over its prompt's tokens. `memcpy`: a copy of as many bytes as
    the passage KV that was loaded has. `question`: the model's own forward over the question behind the blended
    context, the one that gives the first token.
    """

    prefill_token: float
    memcpy: float
    question: float


def step_efficiencies(steps_ms: Mapping[str, float], floor: Floor, *, repaired_tokens: int) -> dict[str, float | None]:
    """The ratios of `TARGETS`; None where there was nothing to do, or nothing that it could be held to.

    `steps_ms` has `load`, `probe` and `repair`. `repair_efficiency` is repair's time a repaired token over full
    prefill's time a token.
    """
    return {
        "repair_efficiency": _ratio(steps_ms["repair"], repaired_tokens * floor.prefill_token),
        "load_efficiency": _ratio(steps_ms["load"], floor.memcpy),
        "probe_efficiency": _ratio(steps_ms["probe"], floor.question),
    }


def _ratio(spent_ms: float, floor_ms: float) -> float | None:
    return spent_ms / floor_ms if spent_ms > 0 and floor_ms > 0 else None
