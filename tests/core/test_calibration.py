"""What follows from a measured curve."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kvblend.core.calibration import Calibration, CurvePoint, smallest_ratio
from tests.core.calibrations import a_calibration, a_curve

RATIOS = st.integers(0, 20).map(lambda steps: steps / 20)
BOUNDS = st.floats(0, 2, allow_nan=False)
CURVE = a_curve({0.05: 0.08, 0.15: 0.04, 0.3: 0.02})
KINDS = a_calibration(CURVE, target_kl=0.05).model_dump()["kinds"]
WRONG = {**KINDS["neutral"], "recompute_ratio": 0.3}
CURVES = st.dictionaries(RATIOS, BOUNDS, min_size=1).map(a_curve)


@given(CURVES, BOUNDS)
def test_every_measured_ratio_from_the_chosen_one_on_meets_the_target(
    curve: tuple[CurvePoint, ...], target: float
) -> None:
    chosen = smallest_ratio(curve, target)
    passing = {point.recompute_ratio for point in curve if point.kl_upper95 <= target}
    if chosen is None:
        below = [point.recompute_ratio for point in curve if point.recompute_ratio < 0.6]
        assert not below or {p.recompute_ratio for p in curve if p.recompute_ratio >= max(below)} - passing
    else:
        assert chosen < 0.6
        assert {point.recompute_ratio for point in curve if point.recompute_ratio >= chosen} <= passing
        lower = [point.recompute_ratio for point in curve if point.recompute_ratio < chosen]
        assert not lower or max(lower) not in passing


@given(CURVES, BOUNDS, BOUNDS)
def test_a_stricter_target_never_needs_less(curve: tuple[CurvePoint, ...], one: float, other: float) -> None:
    strict, loose = (smallest_ratio(curve, target) for target in sorted((one, other)))
    assert strict is None or (loose is not None and loose <= strict)


@given(CURVES, BOUNDS)
def test_the_order_of_points_does_not_matter(curve: tuple[CurvePoint, ...], target: float) -> None:
    assert smallest_ratio(reversed(curve), target) == smallest_ratio(curve, target)


def test_answers_that_differ_do_not_meet_a_target_however_small_their_kl() -> None:
    """By the share of tokens, and of the answers' first ones."""
    points = a_curve({0.05: 0.01, 0.15: 0.01, 0.3: 0.01})
    for field in ("agreement", "first_agreement"):
        curve = (points[0], points[1].model_copy(update={field: 0.85}), points[2])
        assert (smallest_ratio(curve, 0.05, 0.9), smallest_ratio(curve, 0.05, 0.8)) == (0.3, 0.05)


def test_each_kind_has_its_own_ratio() -> None:
    calibration = a_calibration(
        CURVE, target_kl=0.05, curves={"fits": a_curve({0.0: 0.01}), "neutral": a_curve({0.3: 1.0})}
    )
    ratios = {kind: own.recompute_ratio for kind, own in calibration.kinds.items()}
    assert ratios == {"fits": 0.0, "document": 0.15, "neutral": None}
    assert calibration.ratio_for("own", 2.0) == 0.3, "as neutral"
    assert not calibration.is_unable and a_calibration(CURVE, target_kl=0.001).is_unable


def test_a_lucky_point_below_one_that_fails_is_not_chosen() -> None:
    assert smallest_ratio(a_curve({0.05: 0.01, 0.15: 0.09, 0.3: 0.02}), 0.05) == 0.3


@given(CURVES, st.floats(0.001, 2))
def test_a_calibration_survives_its_text(curve: tuple[CurvePoint, ...], target: float) -> None:
    calibration = a_calibration(curve, target_kl=target)
    assert Calibration.model_validate_json(calibration.model_dump_json()) == calibration


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"kinds": {**KINDS, "neutral": WRONG}},
            "0.3 is not what the curve of 'neutral' gives for target_kl 0.05: 0.15",
        ),
        ({"kinds": {"neutral": KINDS["neutral"]}}, "the kinds are .'neutral'.; they must be"),
        ({"target_agreement": 0.99}, "0.15 is not what the curve of .* gives for target_kl 0.05: None"),
        ({"version": 1}, "version"),
        ({"target_kl": 0}, "target_kl"),
        ({"model_fingerprint": "abc"}, "model_fingerprint"),
        ({"kinds": {**KINDS, "fits": {**WRONG, "curve": []}}}, "curve"),
        ({"kinds": {**KINDS, "fits": {**WRONG, "curve": WRONG["curve"][::-1]}}}, "ascend"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_what_does_not_hold_together_is_refused(change: dict[str, object], said: str) -> None:
    whole = a_calibration(CURVE, target_kl=0.05).model_dump()
    with pytest.raises(ValidationError, match=said):
        Calibration.model_validate({**whole, **change})
