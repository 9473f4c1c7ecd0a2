"""The truncated KL against the whole one."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvblend.api.quality.truncated_kl import truncated_kl

Logits = st.lists(st.floats(-8, 8), min_size=30, max_size=30)


def log_softmax(logits: list[float]) -> np.ndarray:
    values = np.asarray(logits, dtype=np.float64)
    shifted: np.ndarray = values - values.max() - math.log(np.exp(values - values.max()).sum())
    return shifted


def likeliest(distribution: np.ndarray, count: int) -> dict[int, float]:
    return {int(token): float(distribution[token]) for token in np.argsort(-distribution)[:count]}


@given(reference=Logits, other=Logits, count=st.integers(1, 30))
def test_it_is_never_more_than_the_whole_kl(reference: list[float], other: list[float], count: int) -> None:
    p, q = log_softmax(reference), log_softmax(other)
    whole = float((np.exp(p) * (p - q)).sum())
    truncated = truncated_kl(likeliest(p, count), likeliest(q, count))
    assert 0.0 <= truncated <= whole + 1e-4
    if count == 30:
        assert truncated == pytest.approx(whole, abs=1e-4)


@given(logits=Logits, count=st.integers(1, 30))
def test_equal_distributions_do_not_diverge(logits: list[float], count: int) -> None:
    distribution = likeliest(log_softmax(logits), count)
    assert truncated_kl(distribution, distribution) == pytest.approx(0.0, abs=1e-9)


def test_what_is_likely_in_one_alone_counts_as_the_rest() -> None:
    """Reference: 0.9 on a token that the other does not know, and 0.1 on one that both do, to which it gives 0.5."""
    reference = {1: math.log(0.9), 2: math.log(0.1)}
    other = {2: math.log(0.5), 3: math.log(0.4)}
    expected = 0.1 * math.log(0.1 / 0.5) + 0.9 * math.log(0.9 / 0.5)
    assert truncated_kl(reference, other) == pytest.approx(expected)
