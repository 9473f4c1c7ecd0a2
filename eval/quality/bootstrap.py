"""Confidence intervals by resampling questions, the same resamples for every method."""

from collections.abc import Sequence

import numpy as np

__all__ = ["Resamples"]

Interval = tuple[float, float]


class Resamples:
    """Draws of `num_questions` questions with replacement; methods measured on the same questions share them."""

    def __init__(self, num_questions: int, *, num_draws: int = 10_000, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self._draws = generator.integers(0, num_questions, size=(num_draws, num_questions))

    def mean_ci95(self, values: Sequence[float]) -> Interval:
        """95% interval of the mean of one value a question."""
        return self._interval(self._means(values))

    def ratio_ci95(self, values: Sequence[float], others: Sequence[float]) -> Interval:
        """95% interval of mean(values) / mean(others), paired by question."""
        return self._interval(self._means(values) / self._means(others))

    def _means(self, values: Sequence[float]) -> np.ndarray:
        means: np.ndarray = np.asarray(values, dtype=np.float64)[self._draws].mean(axis=1)
        return means

    @staticmethod
    def _interval(statistics: np.ndarray) -> Interval:
        low, high = np.percentile(statistics, [2.5, 97.5])
        return float(low), float(high)
