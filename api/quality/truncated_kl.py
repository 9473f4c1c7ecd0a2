"""How far two distributions are apart of which the likeliest tokens alone are known."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from kvblend.api.engine.answer_tokens import AnswerToken

__all__ = ["answer_kl", "token_kls", "truncated_kl"]

LEAST_MASS = 1e-6
"""A rest below it is the rounding of what is known."""


def truncated_kl(reference: Mapping[int, float], other: Mapping[int, float]) -> float:
    """KL(reference || other) in nats, over the tokens that both know and one more for all the rest.

    Both map token ids to natural log-probabilities. Merging tokens never adds divergence, so this is at most the KL
    over the whole vocabulary; where neither knows a token of the other it is 0.
    """
    known = reference.keys() & other.keys()
    divergence = sum(math.exp(reference[token]) * (reference[token] - other[token]) for token in known)
    rest, other_rest = (_rest(distribution, known) for distribution in (reference, other))
    return max(0.0, divergence + rest * math.log(rest / other_rest))


def token_kls(reference: Sequence[AnswerToken], answer: Sequence[AnswerToken]) -> list[float]:
    """The `truncated_kl` at each of an answer's tokens, in nats; `reference` has full prefill's in their places."""
    return [
        truncated_kl(full.log_probabilities, ours.log_probabilities)
        for full, ours in zip(reference, answer, strict=True)
    ]


def answer_kl(reference: Sequence[AnswerToken], answer: Sequence[AnswerToken]) -> float:
    """The mean of `token_kls`."""
    return fmean(token_kls(reference, answer))


def _rest(distribution: Mapping[int, float], known: set[int]) -> float:
    """The probability of all but `known`."""
    return max(LEAST_MASS, 1.0 - sum(math.exp(distribution[token]) for token in known))
