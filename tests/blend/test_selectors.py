"""Selectors: how many, which, in what order."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from kvblend.blend.selectors import SELECTORS


@given(
    name=st.sampled_from(sorted(SELECTORS)),
    num_tokens=st.integers(1, 60),
    ratio=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_selection(name: str, num_tokens: int, ratio: float, seed: int) -> None:
    """A selection is an ascending subset of the candidates, as many as `count` says, the highest scores first."""
    torch.manual_seed(seed)
    scores = torch.rand(num_tokens)
    candidates = torch.rand(num_tokens).lt(0.7).nonzero()[:, 0]
    selector = SELECTORS[name]
    selected = selector.select(candidates, recompute_ratio=ratio, scores=scores)
    assert len(selected) == selector.count(len(candidates), recompute_ratio=ratio)
    assert set(selected.tolist()) <= set(candidates.tolist())
    assert selected.tolist() == sorted(selected.tolist())
    if name == "probe" and 0 < len(selected) < len(candidates):
        left = candidates[~torch.isin(candidates, selected)]
        assert scores[selected].min() >= scores[left].max()
