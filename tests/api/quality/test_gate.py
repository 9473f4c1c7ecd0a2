"""What the gate decides, by calibration, request and cost."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvblend.api.quality.cost_model import CostModel, Work
from kvblend.api.quality.gate import ContextCounts, hold_to_calibration, hold_to_costs
from kvblend.core.errors import InvalidRequestError
from kvblend.core.rest import BlendChoices
from tests.core.calibrations import a_calibration, a_curve

CURVE = a_curve({0.0: 0.09, 0.05: 0.06, 0.15: 0.04, 0.3: 0.02, 0.55: 0.01})
CALIBRATED = a_calibration(CURVE, target_kl=0.05)
MIXED = a_calibration(
    CURVE, target_kl=0.05, curves={"fits": a_curve({0.0: 0.01, 0.15: 0.0}), "neutral": a_curve({0.3: 1.0})}
)
UNABLE = a_calibration(CURVE, target_kl=0.005)
NEUTRAL = ContextCounts({"neutral": 100}, 0, 10, 110)
COSTS = CostModel(
    fixed_ms=5,
    blend_fixed_ms=10,
    pass_fixed_ms=5,
    prefilled_token_ms=0.5,
    recomputed_token_ms=0.5,
    reused_token_ms=0.05,
)


@pytest.mark.parametrize(
    ("choices", "verdict", "ratio", "calibrated"),
    [
        (BlendChoices(), "calibrated", 0.15, True),
        (BlendChoices(recompute_ratio=0.3), "calibrated", 0.3, True),
        (BlendChoices(recompute_ratio=0.1), "uncalibrated", 0.1, False),
        (BlendChoices(target_kl=0.07), "calibrated", 0.05, True),
        (BlendChoices(target_kl=0.02), "calibrated", 0.3, True),
        (BlendChoices(selector="none"), "uncalibrated", 0.15, False),
    ],
)
def test_a_calibrated_model(choices: BlendChoices, verdict: str, ratio: float, calibrated: bool) -> None:
    decision = hold_to_calibration(choices, NEUTRAL, CALIBRATED, default_ratio=0.2)
    assert (decision.verdict, decision.ratios["neutral"], decision.calibrated) == (verdict, ratio, calibrated)
    assert decision.prefill_reason is None


def test_a_target_that_no_ratio_meets_is_met_by_full_prefill() -> None:
    decision = hold_to_calibration(BlendChoices(target_kl=0.001), NEUTRAL, CALIBRATED, default_ratio=0.2)
    assert (decision.verdict, decision.calibrated) == ("target", True)
    assert "the request's target KL of 0.001" in (decision.prefill_reason or "")


@pytest.mark.parametrize("choices", [BlendChoices(), BlendChoices(recompute_ratio=0.5), BlendChoices(target_kl=1.0)])
def test_a_model_that_cannot_meet_its_target_is_never_blended(choices: BlendChoices) -> None:
    decision = hold_to_calibration(choices, NEUTRAL, UNABLE, default_ratio=0.2)
    assert decision.verdict == "unable"
    assert "no recompute ratio below 0.6 meets the model's target KL of 0.005" in (decision.prefill_reason or "")


def test_without_a_calibration_the_default_serves_and_a_target_is_refused() -> None:
    assert hold_to_calibration(BlendChoices(), NEUTRAL, None, default_ratio=0.2).ratios["neutral"] == 0.2
    named = hold_to_calibration(BlendChoices(recompute_ratio=0.9), NEUTRAL, None, default_ratio=0.2)
    assert (named.verdict, named.ratios["neutral"], named.calibrated) == ("uncalibrated", 0.9, False)
    with pytest.raises(InvalidRequestError, match=re.escape("target_kl 0.05: the model that is served is not calibr")):
        hold_to_calibration(BlendChoices(target_kl=0.05), NEUTRAL, None, default_ratio=0.2)


def test_each_kind_is_repaired_as_much_as_it_needs() -> None:
    """What no ratio is known of is recomputed in full; a collection's own text was not measured."""
    counts = ContextCounts({"fits": 10, "document": 20, "neutral": 30}, 0, 10, 70)
    decision = hold_to_calibration(BlendChoices(), counts, MIXED, default_ratio=0.2)
    assert decision.ratios == {"fits": 0.0, "document": 0.15, "neutral": 1.0, "own": 1.0}
    assert decision.calibrated and decision.recompute_ratio(counts) == 1.0
    assert decision.recompute_ratio(ContextCounts({"fits": 10, "document": 20}, 0, 10, 40)) == 0.15
    own = hold_to_calibration(BlendChoices(), ContextCounts({"own": 10}, 0, 10, 20), CALIBRATED, default_ratio=0.2)
    assert (own.ratios["own"], own.calibrated) == (0.15, False)
    alone = hold_to_calibration(BlendChoices(), NEUTRAL, MIXED, default_ratio=0.2)
    assert (alone.verdict, alone.calibrated) == ("unable", True)


def test_a_ratio_that_a_request_names_is_of_what_does_not_fit() -> None:
    uncalibrated = hold_to_calibration(BlendChoices(recompute_ratio=0.3), NEUTRAL, None, default_ratio=0.2)
    assert uncalibrated.ratios == pytest.approx({"fits": 0.1, "document": 0.3, "neutral": 0.3, "own": 0.3})
    calibrated = hold_to_calibration(BlendChoices(recompute_ratio=0.3), NEUTRAL, MIXED, default_ratio=0.2)
    assert calibrated.ratios == {"fits": 0.0, "document": 0.3, "neutral": 0.3, "own": 0.3}
    assert not calibrated.calibrated, "neutral passages need more"
    everything = hold_to_calibration(BlendChoices(recompute_ratio=1.0), NEUTRAL, None, default_ratio=0.2)
    assert set(everything.ratios.values()) == {1.0}, "full prefill by way of repair"


def test_a_target_for_another_selector_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="the calibration is of 'probe', not of 'none'"):
        hold_to_calibration(BlendChoices(target_kl=0.05, selector="none"), NEUTRAL, CALIBRATED, default_ratio=0.2)


COUNTS = st.builds(
    lambda reused, fresh, question: ContextCounts({"neutral": reused}, fresh, question, reused + fresh + question),
    st.integers(1, 5000),
    st.integers(0, 5000),
    st.integers(1, 500),
)


@given(COUNTS, st.floats(0, 1))
def test_a_prompt_is_blended_where_that_is_expected_to_be_faster(counts: ContextCounts, ratio: float) -> None:
    before = hold_to_calibration(BlendChoices(recompute_ratio=ratio), NEUTRAL, CALIBRATED, default_ratio=0.2)
    after = hold_to_costs(before, None, counts, COSTS)
    probed = counts.question if 0 < ratio < 1 else 0
    repaired = counts.fresh + round(ratio * counts.num_reused)
    blended_ms = COSTS.blended_ms(Work(counts.question, counts.num_reused, probed, repaired))
    assert (after == before) == (blended_ms < COSTS.full_ms(counts.prompt))


def test_a_short_prompt_is_prefilled_and_the_reason_says_what_was_expected() -> None:
    before = hold_to_calibration(BlendChoices(), NEUTRAL, CALIBRATED, default_ratio=0.2)
    after = hold_to_costs(before, None, ContextCounts(reused={"neutral": 10}, fresh=0, question=10, prompt=40), COSTS)
    assert (after.verdict, after.calibrated) == ("cost", True)
    assert after.prefill_reason == (
        "blending cannot pay: with 10 tokens reused the first token is expected after 36 ms, "
        "by full prefill after 25 ms"
    )


def test_what_the_selector_recomputes_counts() -> None:
    before = hold_to_calibration(BlendChoices(), NEUTRAL, CALIBRATED, default_ratio=0.2)
    counts = ContextCounts(reused={"neutral": 1000}, fresh=0, question=10, prompt=1035)
    assert hold_to_costs(before, "none", counts, COSTS) == before
    assert hold_to_costs(before, "all", counts, COSTS).verdict == "cost"


@pytest.mark.parametrize(
    ("ratio", "fresh", "expected_ms"),
    [
        (0.0, 0, "20"),  # 5 + 10 for the blend, 4 tokens reused and 10 prefilled
        (0.1, 0, "30"),  # the probe's pass over 10 tokens, none selected
        (0.0, 2, "26"),  # the repair's pass over 2 tokens
        (0.5, 0, "36"),  # both
    ],
)
def test_each_pass_of_a_blend_counts(ratio: float, fresh: int, expected_ms: str) -> None:
    before = hold_to_calibration(BlendChoices(recompute_ratio=ratio), NEUTRAL, None, default_ratio=0.2)
    counts = ContextCounts(reused={"neutral": 4}, fresh=fresh, question=10, prompt=14 + fresh)
    reason = hold_to_costs(before, None, counts, COSTS).prefill_reason or ""
    assert f"the first token is expected after {expected_ms} ms" in reason
