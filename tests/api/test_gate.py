"""What the gate decides, by calibration, request and cost."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvblend.api.cost_model import CostModel, Work
from kvblend.api.gate import ContextCounts, Wishes, hold_to_calibration, hold_to_costs
from kvblend.core.errors import InvalidRequestError
from tests.core.calibrations import a_calibration, a_curve

CURVE = a_curve({0.0: 0.09, 0.05: 0.06, 0.15: 0.04, 0.3: 0.02, 0.55: 0.01})
CALIBRATED = a_calibration(CURVE, target_kl=0.05)
UNABLE = a_calibration(CURVE, target_kl=0.005)
COSTS = CostModel(
    fixed_ms=5,
    blend_fixed_ms=10,
    pass_fixed_ms=5,
    prefilled_token_ms=0.5,
    recomputed_token_ms=0.5,
    reused_token_ms=0.05,
)


@pytest.mark.parametrize(
    ("wishes", "verdict", "ratio", "calibrated"),
    [
        (Wishes(), "calibrated", 0.15, True),
        (Wishes(recompute_ratio=0.3), "calibrated", 0.3, True),
        (Wishes(recompute_ratio=0.1), "uncalibrated", 0.1, False),
        (Wishes(target_kl=0.07), "calibrated", 0.05, True),
        (Wishes(target_kl=0.02), "calibrated", 0.3, True),
        (Wishes(selector="none"), "uncalibrated", 0.15, False),
    ],
)
def test_a_calibrated_model(wishes: Wishes, verdict: str, ratio: float, calibrated: bool) -> None:
    decision = hold_to_calibration(wishes, CALIBRATED, default_ratio=0.2)
    assert (decision.verdict, decision.recompute_ratio, decision.calibrated) == (verdict, ratio, calibrated)
    assert decision.prefill_reason is None


def test_a_target_that_no_ratio_meets_is_met_by_full_prefill() -> None:
    decision = hold_to_calibration(Wishes(target_kl=0.001), CALIBRATED, default_ratio=0.2)
    assert (decision.verdict, decision.calibrated) == ("target", True)
    assert "the request's target KL of 0.001" in (decision.prefill_reason or "")


@pytest.mark.parametrize("wishes", [Wishes(), Wishes(recompute_ratio=0.5), Wishes(target_kl=1.0)])
def test_a_model_that_cannot_meet_its_target_is_never_blended(wishes: Wishes) -> None:
    decision = hold_to_calibration(wishes, UNABLE, default_ratio=0.2)
    assert decision.verdict == "unable"
    assert "no recompute ratio below 0.6 meets the model's target KL of 0.005" in (decision.prefill_reason or "")


def test_without_a_calibration_the_default_serves_and_a_target_is_refused() -> None:
    assert hold_to_calibration(Wishes(), None, default_ratio=0.2).recompute_ratio == 0.2
    named = hold_to_calibration(Wishes(recompute_ratio=0.9), None, default_ratio=0.2)
    assert (named.verdict, named.recompute_ratio, named.calibrated) == ("uncalibrated", 0.9, False)
    with pytest.raises(InvalidRequestError, match=re.escape("target_kl 0.05: the model that is served is not calibr")):
        hold_to_calibration(Wishes(target_kl=0.05), None, default_ratio=0.2)


def test_a_target_for_another_selector_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="the calibration is of 'probe', not of 'none'"):
        hold_to_calibration(Wishes(target_kl=0.05, selector="none"), CALIBRATED, default_ratio=0.2)


COUNTS = st.builds(
    lambda reused, fresh, question: ContextCounts(reused, fresh, question, reused + fresh + question),
    st.integers(1, 5000),
    st.integers(0, 5000),
    st.integers(1, 500),
)


@given(COUNTS, st.floats(0, 1))
def test_a_prompt_is_blended_where_that_is_expected_to_be_faster(counts: ContextCounts, ratio: float) -> None:
    before = hold_to_calibration(Wishes(recompute_ratio=ratio), CALIBRATED, default_ratio=0.2)
    after = hold_to_costs(before, None, counts, COSTS)
    probed = counts.question if 0 < ratio < 1 else 0
    repaired = counts.fresh + round(ratio * counts.reused)
    blended_ms = COSTS.blended_ms(Work(counts.question, counts.reused, probed, repaired))
    assert (after == before) == (blended_ms < COSTS.full_ms(counts.prompt))


def test_a_short_prompt_is_prefilled_and_the_reason_says_what_was_expected() -> None:
    before = hold_to_calibration(Wishes(), CALIBRATED, default_ratio=0.2)
    after = hold_to_costs(before, None, ContextCounts(reused=10, fresh=0, question=10, prompt=40), COSTS)
    assert (after.verdict, after.calibrated) == ("cost", True)
    assert after.prefill_reason == (
        "blending cannot pay: with 10 tokens reused the first token is expected after 36 ms, "
        "by full prefill after 25 ms"
    )


def test_what_the_selector_recomputes_counts() -> None:
    before = hold_to_calibration(Wishes(), CALIBRATED, default_ratio=0.2)
    counts = ContextCounts(reused=1000, fresh=0, question=10, prompt=1035)
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
    before = hold_to_calibration(Wishes(recompute_ratio=ratio), None, default_ratio=0.2)
    counts = ContextCounts(reused=4, fresh=fresh, question=10, prompt=14 + fresh)
    reason = hold_to_costs(before, None, counts, COSTS).prefill_reason or ""
    assert f"the first token is expected after {expected_ms} ms" in reason
