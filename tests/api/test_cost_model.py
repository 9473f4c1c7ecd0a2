"""Fitting finds the costs that times were made of, and never less than nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvblend.api.cost_model import CostModel, CostSample

COST = st.floats(0, 100)
COUNT = st.integers(0, 100_000)
MODELS = st.builds(CostModel, COST, COST, COST, COST, COST)
TIME = st.floats(0, 1e5)

FULL, REUSE, REPAIR = ((64, 0, 0), (288, 0, 0)), ((16, 32, 0), (16, 256, 0)), (16, 256, 144)
"""Tokens prefilled, reused and recomputed by the requests that are timed."""


def sample(counts: tuple[int, int, int], ttft_ms: float) -> CostSample:
    return CostSample(ttft_ms, *counts)


def timed(model: CostModel, counts: tuple[int, int, int]) -> CostSample:
    prefilled, reused, recomputed = counts
    if not reused:
        return sample(counts, model.full_ms(prefilled))
    blended = model.blended_ms(num_reused=reused, num_recomputed=recomputed, num_prefilled=prefilled)
    return sample(counts, blended)


@given(MODELS, COUNT, COUNT, COUNT)
def test_a_fit_to_exact_times_predicts_them(model: CostModel, reused: int, recomputed: int, prefilled: int) -> None:
    full, reuse = tuple(timed(model, c) for c in FULL), tuple(timed(model, c) for c in REUSE)
    fitted = CostModel.fit(full=(full[0], full[1]), reuse=(reuse[0], reuse[1]), repair=timed(model, REPAIR))
    assert fitted.full_ms(prefilled) == pytest.approx(model.full_ms(prefilled), abs=1e-2, rel=1e-6)
    counts = {"num_reused": reused, "num_recomputed": recomputed, "num_prefilled": prefilled}
    assert fitted.blended_ms(**counts) == pytest.approx(model.blended_ms(**counts), abs=1e-2, rel=1e-6)


@given(TIME, TIME, TIME, TIME, TIME)
def test_however_noisy_the_times_no_token_takes_less_than_nothing(
    a: float, b: float, c: float, d: float, e: float
) -> None:
    fitted = CostModel.fit(
        full=(sample(FULL[0], a), sample(FULL[1], b)),
        reuse=(sample(REUSE[0], c), sample(REUSE[1], d)),
        repair=sample(REPAIR, e),
    )
    assert min(vars(fitted).values()) >= 0


@given(MODELS, COUNT, COUNT, COUNT, COUNT)
def test_more_tokens_never_take_less(model: CostModel, one: int, other: int, reused: int, more: int) -> None:
    few, many = sorted((one, other))
    assert model.full_ms(few) <= model.full_ms(many)
    fewer = model.blended_ms(num_reused=reused, num_recomputed=few, num_prefilled=few)
    assert fewer <= model.blended_ms(num_reused=reused + more, num_recomputed=many, num_prefilled=many)


def test_two_requests_of_one_length_tell_nothing() -> None:
    same = sample(FULL[0], 1.0)
    with pytest.raises(ValueError, match="not 0 more"):
        CostModel.fit(full=(same, same), reuse=(same, same), repair=same)
