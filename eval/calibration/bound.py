"""An upper confidence bound of a mean."""

from collections.abc import Sequence

import numpy as np

__all__ = ["mean_upper95"]

NUM_DRAWS = 10_000


def mean_upper95(values: Sequence[float]) -> float:
    """One-sided 95% upper confidence bound of the mean of one value a question, by bootstrap over questions.

    Studentized (Efron and Tibshirani, An Introduction to the Bootstrap, section 12.5): a few questions diverge far
    more than most, where the plain percentile is too low for a dozen of them. Never below the mean of `values`.
    Raises ValueError where there are fewer than two.
    """
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) < 2:
        raise ValueError(f"{len(sample)} values have no confidence bound; 2 are the least")
    mean, error = sample.mean(), _standard_error(sample)
    draws = sample[np.random.default_rng(0).integers(0, len(sample), size=(NUM_DRAWS, len(sample)))]
    errors = _standard_error(draws)
    spread = errors > 0  # a draw of one question alone says nothing of its own error
    if not spread.any():
        return float(mean)
    deviations = (draws.mean(axis=-1)[spread] - mean) / errors[spread]
    return float(max(mean, mean - np.percentile(deviations, 5) * error))


def _standard_error(samples: np.ndarray) -> np.ndarray:
    error: np.ndarray = samples.std(axis=-1, ddof=1) / samples.shape[-1] ** 0.5
    return error
