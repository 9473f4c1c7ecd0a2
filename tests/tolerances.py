"""What rounding may do, by the dtype that a model runs in: the bounds of every comparison of two exact paths.

Two such paths add the same numbers in other orders, so that their log-probabilities differ by the dtype's rounding: 24
bits of mantissa in fp32, 8 in bf16, where vLLM's own full prefill is as far from the same model in fp32.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest

__all__ = ["TOLERANCES", "Tolerances", "tolerances"]


@dataclass(frozen=True)
class Tolerances:
    """Bounds of one dtype. Divergences are mean KL over an answer's steps, in nats."""

    full_prefill: float
    """Divergence of everything recomputed from vLLM's full prefill, of a tiny random model."""
    full_reuse: float
    """Divergence of nothing recomputed from full reuse by its definition in fp32, of a tiny random model."""
    demo: float
    """Either divergence, of the demo model, whose distributions are flatter."""
    kv: float
    """Norm of the deviation of a context's keys or values, of their own norm."""
    kv_vector: float
    """The same of any one token's key or value in a head."""
    score_tie: float
    """Of a probe score, how far another's may be to change places with it."""
    logprob: float
    """Largest difference of a token's log-probability, of any model; by as much may a likelier token be passed over."""
    control: float
    """How many times its tolerance each negative control goes beyond."""


TOLERANCES: Mapping[str, Tolerances] = {
    "float32": Tolerances(
        full_prefill=1e-6,
        full_reuse=1e-6,
        demo=1e-6,
        kv=1e-5,
        kv_vector=1e-3,
        score_tie=0.0,
        logprob=1e-3,
        control=10,
    ),
    "bfloat16": Tolerances(
        full_prefill=0.05,
        full_reuse=0.15,
        demo=0.004,
        kv=0.05,
        kv_vector=0.1,
        score_tie=0.1,
        logprob=0.8,
        control=3,
    ),
}


@pytest.fixture(scope="session")
def tolerances(dtype: str) -> Tolerances:
    """Those of the run's dtype."""
    return TOLERANCES[dtype]
