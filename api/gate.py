"""Decide, before a prompt goes to vLLM, at which ratio its context is blended, or why it is not."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from kvblend.api.cost_model import CostModel, Work
from kvblend.api.served_calibration import ServedCalibration
from kvblend.core.calibration import MAX_RATIO, Calibration
from kvblend.core.control import EngineInfo
from kvblend.core.errors import InvalidRequestError
from kvblend.core.plan import SelectorName

__all__ = ["ContextCounts", "Decision", "Gate", "Wishes"]

Verdict = Literal["calibrated", "uncalibrated", "unable", "target", "cost"]
"""Blended, and held to a calibration or not; or prefilled, since the model cannot meet its target, or no ratio the
request's, or blending cannot pay."""


@dataclass(frozen=True)
class Wishes:
    """What a request says of how to blend."""

    recompute_ratio: float | None = None
    target_kl: float | None = None
    selector: SelectorName | None = None


@dataclass(frozen=True)
class ContextCounts:
    """Tokens of a prompt: passages whose KV is stored, all else of the context that is to be computed, and the
    question."""

    reused: int
    fresh: int
    question: int
    prompt: int


@dataclass(frozen=True)
class Decision:
    """`prefill_reason` is None where the prompt is blended. `calibrated`: the answer is held to a calibration's target,
    or to the request's own; where it is blended, `target_kl` says to which."""

    verdict: Verdict
    recompute_ratio: float
    calibrated: bool
    prefill_reason: str | None = None
    target_kl: float | None = None


class Gate:
    """Holds a model to its calibration and short prompts to what they cost.

    `costs` gives an engine's cost model, or None while it is not known: then no prompt counts as too short.
    """

    def __init__(self, calibration: ServedCalibration, costs: Callable[[EngineInfo], CostModel | None]) -> None:
        self.calibration = calibration
        self._costs = costs

    async def decide(self, wishes: Wishes, counts: ContextCounts, *, info: EngineInfo) -> Decision:
        """Decide on one prompt with passages. Raises InvalidRequestError where its target cannot be told a ratio."""
        decision = hold_to_calibration(
            wishes, await self.calibration.of(info), default_ratio=info.default_recompute_ratio
        )
        costs = self._costs(info)
        if decision.prefill_reason is not None or costs is None or not counts.reused:
            return decision
        return hold_to_costs(decision, wishes.selector, counts, costs)


def hold_to_calibration(wishes: Wishes, calibration: Calibration | None, *, default_ratio: float) -> Decision:
    """Choose the ratio that a request is blended at, by what it names and what was calibrated.

    Raises InvalidRequestError for a target without a calibration, or with another selector than the calibrated one.
    """
    selector = wishes.selector or "probe"
    if calibration is None:
        if wishes.target_kl is not None:
            raise InvalidRequestError(
                f"target_kl {wishes.target_kl:g}: the model that is served is not calibrated, so that no ratio is "
                "known to meet it; run `kvblend calibrate`, or name a recompute_ratio",
                param="target_kl",
            )
        ratio = default_ratio if wishes.recompute_ratio is None else wishes.recompute_ratio
        return Decision("uncalibrated", ratio, calibrated=False)
    if calibration.recompute_ratio is None:
        reason = f"no recompute ratio below {MAX_RATIO:g} meets the model's target KL of {calibration.target_kl:g}"
        return Decision("unable", 1.0, calibrated=True, prefill_reason=reason)
    if wishes.target_kl is not None:
        if selector != calibration.selector:
            raise InvalidRequestError(
                f"target_kl {wishes.target_kl:g}: the calibration is of {calibration.selector!r}, not of {selector!r}",
                param="target_kl",
            )
        met = calibration.ratio_for(wishes.target_kl)
        if met is None:
            reason = f"no recompute ratio below {MAX_RATIO:g} meets the request's target KL of {wishes.target_kl:g}"
            return Decision("target", 1.0, calibrated=True, prefill_reason=reason)
        return Decision("calibrated", met, calibrated=True, target_kl=wishes.target_kl)
    ratio = calibration.recompute_ratio if wishes.recompute_ratio is None else wishes.recompute_ratio
    held = selector == calibration.selector and ratio >= calibration.recompute_ratio
    target_kl = calibration.target_kl if held else None
    return Decision("calibrated" if held else "uncalibrated", ratio, calibrated=held, target_kl=target_kl)


def hold_to_costs(
    decision: Decision, selector: SelectorName | None, counts: ContextCounts, costs: CostModel
) -> Decision:
    """Prefill a prompt whose blend would take as long as its full prefill."""
    ratio = {"none": 0.0, "all": 1.0}.get(selector or "probe", decision.recompute_ratio)
    work = Work(
        num_prefilled=counts.question,
        num_reused=counts.reused,
        num_probed=counts.question if selector in (None, "probe") and 0.0 < ratio < 1.0 else 0,
        num_repaired=counts.fresh + round(ratio * counts.reused),
    )
    blended_ms = costs.blended_ms(work)
    full_ms = costs.full_ms(counts.prompt)
    if blended_ms < full_ms:
        return decision
    reason = (
        f"blending cannot pay: with {counts.reused} tokens reused the first token is expected after "
        f"{blended_ms:.0f} ms, by full prefill after {full_ms:.0f} ms"
    )
    return Decision("cost", 1.0, calibrated=decision.verdict == "calibrated", prefill_reason=reason)
