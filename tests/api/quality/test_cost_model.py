"""Fitting finds the costs that times were made of, and never less than nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvblend.api.quality.cost_model import CostModel, CostSample, Work

COST = st.floats(0, 100)
COUNT = st.integers(0, 100_000)
MODELS = st.builds(CostModel, COST, COST, COST, COST, COST, COST)
TIMES = st.lists(st.floats(0, 1e5), min_size=2, max_size=2)

FULL = Work(64), Work(288)
REUSE = Work(16, 32), Work(16, 256)
REPAIR = Work(16, 32, 16, 16), Work(16, 256, 16, 128)
"""Of the requests that are timed."""


def fit(full: list[float], reuse: list[float], repair: list[float]) -> CostModel:
    """A short and a long request's time of each kind."""
    kinds = zip((FULL, REUSE, REPAIR), (full, reuse, repair), strict=True)
    samples = [[CostSample(ms, work) for ms, work in zip(times, kind, strict=True)] for kind, times in kinds]
    (full_short, full_long), (reuse_short, reuse_long), (repair_short, repair_long) = samples
    return CostModel.fit(
        full=(full_short, full_long), reuse=(reuse_short, reuse_long), repair=(repair_short, repair_long)
    )


@given(MODELS, st.builds(Work, COUNT, COUNT, COUNT, COUNT))
def test_a_fit_to_exact_times_predicts_them(model: CostModel, work: Work) -> None:
    fitted = fit(
        [model.full_ms(each.num_prefilled) for each in FULL],
        [model.blended_ms(each) for each in REUSE],
        [model.blended_ms(each) for each in REPAIR],
    )
    prefilled = work.num_prefilled
    assert fitted.full_ms(prefilled) == pytest.approx(model.full_ms(prefilled), abs=1e-2, rel=1e-6)
    assert fitted.blended_ms(work) == pytest.approx(model.blended_ms(work), abs=1e-2, rel=1e-6)


def test_a_blend_of_few_tokens_takes_its_pass_however_few_they_are() -> None:
    """Times of the demo model on a busy machine, where a full prefill of 9 tokens then took 120 ms, and 200 ms a blend
    that probed with 2 of them."""
    fitted = fit([326.7, 1095.6], [166.1, 198.5], [424.3, 894.8])
    assert fitted.blended_ms(Work(2, 3, num_probed=2)) == pytest.approx(200, rel=0.2)
    assert fitted.full_ms(9) == pytest.approx(120, rel=0.2)


@given(TIMES, TIMES, TIMES)
def test_however_noisy_the_times_no_token_takes_less_than_nothing(
    full: list[float], reuse: list[float], repair: list[float]
) -> None:
    assert min(vars(fit(full, reuse, repair)).values()) >= 0


@given(MODELS, COUNT, COUNT, COUNT, COUNT)
def test_more_tokens_never_take_less(model: CostModel, one: int, other: int, reused: int, more: int) -> None:
    few, many = sorted((one, other))
    assert model.full_ms(few) <= model.full_ms(many)
    fewer = model.blended_ms(Work(few, reused, num_repaired=few))
    assert fewer <= model.blended_ms(Work(many, reused + more, num_repaired=many))


def test_two_requests_of_one_length_tell_nothing() -> None:
    same = CostSample(1.0, FULL[0])
    with pytest.raises(ValueError, match="not 0 more"):
        CostModel.fit(full=(same, same), reuse=(same, same), repair=(same, same))
