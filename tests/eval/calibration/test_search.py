"""Which ratios are measured, and the bound that decides."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvblend.core.calibration import smallest_ratio
from kvblend.eval.calibration.bound import mean_upper95
from kvblend.eval.calibration.search import FIRST_RATIOS, next_ratio
from tests.core.calibrations import a_curve


@given(st.floats(0, 0.6), st.booleans())
def test_the_search_ends_at_the_smallest_ratio_of_the_grid(needed: float, inclusive: bool) -> None:
    """Reference: every multiple of 0.05 up to 0.55 measured. Ours: the search."""

    def bound(ratio: float) -> float:
        return 0.0 if ratio > needed or (inclusive and ratio == needed) else 1.0

    measured = {ratio: bound(ratio) for ratio in FIRST_RATIOS}
    while (ratio := next_ratio(a_curve(measured), 0.5, 0.9)) is not None:
        assert ratio not in measured
        measured[ratio] = bound(ratio)
        assert len(measured) <= 8
    grid = [round(step * 0.05, 2) for step in range(12)]
    assert smallest_ratio(a_curve(measured), 0.5) == smallest_ratio(a_curve({r: bound(r) for r in grid}), 0.5)


@given(st.dictionaries(st.sampled_from([round(step * 0.05, 2) for step in range(12)]), st.floats(0, 1), min_size=1))
def test_a_ratio_is_measured_once(bounds: dict[float, float]) -> None:
    ratio = next_ratio(a_curve(bounds), 0.5, 0.9)
    assert ratio is None or (ratio not in bounds and min(bounds) < ratio < max(bounds))


@given(st.lists(st.floats(0, 10), min_size=2, max_size=20))
def test_the_bound_is_never_below_the_mean(values: list[float]) -> None:
    assert mean_upper95(values) >= np.mean(values) - 1e-12


def test_the_bound_holds_in_most_cases() -> None:
    """KL over questions is skewed: log-normal here, spread as the demo model's. The nominal 19 of 20 takes far more
    than 14 questions; the plain percentile bootstrap holds in 17 of 20."""
    generator = np.random.default_rng(7)
    true_mean = np.exp(0.55**2 / 2)
    held = [mean_upper95(list(generator.lognormal(0, 0.55, 14))) >= true_mean for _ in range(200)]
    assert np.mean(held) > 0.88


def test_one_question_has_no_bound() -> None:
    with pytest.raises(ValueError, match="1 values have no confidence bound"):
        mean_upper95([0.1])
    assert mean_upper95([0.1, 0.1, 0.1]) == pytest.approx(0.1)
