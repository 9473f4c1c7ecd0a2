"""Decide, before a prompt goes to vLLM, at which ratio its context is blended, or why it is not."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from kvblend.api.quality.cost_model import CostModel, Work
from kvblend.api.quality.served_calibration import ServedCalibration
from kvblend.core.calibration import ENCODE_KINDS, MAX_RATIO, Calibration, EncodeKind, QualityTarget
from kvblend.core.control import EngineInfo
from kvblend.core.errors import InvalidRequestError
from kvblend.core.plan import SelectorName
from kvblend.core.rest import BlendChoices

__all__ = ["ContextCounts", "Decision", "Gate"]

Verdict = Literal["calibrated", "uncalibrated", "unable", "target", "cost"]
"""Blended, and held to a calibration or not; or prefilled, since the model cannot meet its target, or no ratio the
request's, or blending cannot pay."""

FITTING_SHARE = 1 / 3
"""Of the repair that other passages get, without a calibration (docs/selection.md)."""


@dataclass(frozen=True)
class ContextCounts:
    """Tokens of a prompt: passages whose KV is stored, by what it was encoded behind; all else of the context, which is
    to be computed; and the question."""

    reused: Mapping[EncodeKind, int]
    fresh: int
    question: int
    prompt: int

    @property
    def num_reused(self) -> int:
        return sum(self.reused.values())


@dataclass(frozen=True)
class Decision:
    """`prefill_reason` is None where the prompt is blended; then `ratios` has the recompute ratio of every kind.
    `calibrated`: the answer is held to a calibration's target, or to the request's own; where it is blended,
    `target` says to which."""

    verdict: Verdict
    ratios: Mapping[EncodeKind, float]
    calibrated: bool
    prefill_reason: str | None = None
    target: QualityTarget | None = None

    def recompute_ratio(self, counts: ContextCounts) -> float:
        """The greatest of the kinds that are in a prompt."""
        return max((self.ratios[kind] for kind, count in counts.reused.items() if count), default=0.0)


class Gate:
    """Holds a model to its calibration and short prompts to what they cost.

    `costs` gives an engine's cost model, or None while it is not known: then no prompt counts as too short.
    """

    def __init__(self, calibration: ServedCalibration, costs: Callable[[EngineInfo], CostModel | None]) -> None:
        self.calibration = calibration
        self._costs = costs

    async def decide(self, choices: BlendChoices, counts: ContextCounts, *, info: EngineInfo) -> Decision:
        """Decide on one prompt with passages. Raises InvalidRequestError where its target cannot be told a ratio."""
        decision = hold_to_calibration(
            choices, counts, await self.calibration.of(info), default_ratio=info.default_recompute_ratio
        )
        costs = self._costs(info)
        if decision.prefill_reason is not None or costs is None or not counts.num_reused:
            return decision
        return hold_to_costs(decision, choices.selector, counts, costs)


def hold_to_calibration(
    choices: BlendChoices, counts: ContextCounts, calibration: Calibration | None, *, default_ratio: float
) -> Decision:
    """Choose the ratios that a request is blended at, by what it names and what was calibrated.

    A ratio that a request names is that of passages that do not fit; those that do get as much less as the calibration
    says, or a third without one. A kind that no ratio is known of is recomputed in full. Raises InvalidRequestError for
    a target without a calibration, or with another selector than the calibrated one.
    """
    selector = choices.selector or "probe"
    if calibration is None:
        if choices.target_kl is not None:
            raise InvalidRequestError(
                f"target_kl {choices.target_kl:g}: the model that is served is not calibrated, so that no ratio is "
                "known to meet it; run `kvblend calibrate`, or name a recompute_ratio",
                param="target_kl",
            )
        ratio = default_ratio if choices.recompute_ratio is None else choices.recompute_ratio
        return Decision("uncalibrated", _named(ratio, None), calibrated=False)
    if calibration.is_unable:
        reason = f"no recompute ratio below {MAX_RATIO:g} meets the model's target KL of {calibration.target_kl:g}"
        return Decision("unable", {}, calibrated=True, prefill_reason=reason)
    if choices.target_kl is not None and selector != calibration.selector:
        raise InvalidRequestError(
            f"target_kl {choices.target_kl:g}: the calibration is of {calibration.selector!r}, not of {selector!r}",
            param="target_kl",
        )
    target_kl = calibration.target_kl if choices.target_kl is None else choices.target_kl
    present: list[EncodeKind] = [kind for kind, count in counts.reused.items() if count]
    met = {kind: calibration.ratio_for(kind, target_kl) for kind in (*ENCODE_KINDS, *present)}
    needed = {kind: 1.0 if ratio is None else ratio for kind, ratio in met.items()}
    if choices.recompute_ratio is None and present and all(met[kind] is None for kind in present):
        own = "the model's" if choices.target_kl is None else "the request's"
        reason = f"no recompute ratio below {MAX_RATIO:g} meets {own} target KL of {target_kl:g}"
        return Decision("unable" if choices.target_kl is None else "target", {}, True, prefill_reason=reason)
    ratios = needed if choices.recompute_ratio is None else _named(choices.recompute_ratio, needed)
    held = (
        selector == calibration.selector
        and "own" not in present
        and all(ratios[kind] >= needed[kind] for kind in present)
    )
    target = QualityTarget(target_kl, calibration.target_agreement)
    verdict: Verdict = "calibrated" if held else "uncalibrated"
    return Decision(verdict, ratios | _own(ratios), calibrated=held, target=target if held else None)


def _named(ratio: float, needed: Mapping[EncodeKind, float] | None) -> dict[EncodeKind, float]:
    """The ratios of all kinds, where a request names that of passages that do not fit; all of it is all of them."""
    if ratio == 1.0:
        return dict.fromkeys(("fits", "document", "neutral", "own"), 1.0)
    fitting = FITTING_SHARE * ratio
    if needed is not None:
        share = min(1.0, needed["fits"] / needed["document"]) if needed["document"] else 1.0
        fitting = needed["fits"] if ratio == needed["document"] else share * ratio
    return {"fits": min(ratio, fitting), "document": ratio, "neutral": ratio, "own": ratio}


def _own(ratios: Mapping[EncodeKind, float]) -> dict[EncodeKind, float]:
    return {"own": ratios["neutral"]}


def hold_to_costs(
    decision: Decision, selector: SelectorName | None, counts: ContextCounts, costs: CostModel
) -> Decision:
    """Prefill a prompt whose blend would take as long as its full prefill."""
    everywhere = {"none": 0.0, "all": 1.0}.get(selector or "probe")
    ratios = [decision.ratios[kind] if everywhere is None else everywhere for kind in counts.reused]
    num_selected = round(sum(ratio * count for ratio, count in zip(ratios, counts.reused.values(), strict=True)))
    probes = selector in (None, "probe") and max(ratios) > 0.0 and min(ratios) < 1.0
    work = Work(
        num_prefilled=counts.question,
        num_reused=counts.num_reused,
        num_probed=counts.question if probes else 0,
        num_repaired=counts.fresh + num_selected,
    )
    blended_ms = costs.blended_ms(work)
    full_ms = costs.full_ms(counts.prompt)
    if blended_ms < full_ms:
        return decision
    reason = (
        f"blending cannot pay: with {counts.num_reused} tokens reused the first token is expected after "
        f"{blended_ms:.0f} ms, by full prefill after {full_ms:.0f} ms"
    )
    return Decision("cost", {}, calibrated=decision.verdict == "calibrated", prefill_reason=reason)
