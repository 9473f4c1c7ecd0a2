"""The lab's selectors: what they pick, what it costs, and that everything picked is full prefill."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kvblend.blend.hf import EncodedPassage, HuggingFaceModel, PassageEncoder, lay_out, prefill
from kvblend.eval.rivals import LAB_SELECTORS
from tests.blend.hf.test_model import (
    ANSWER,
    NUM_ANSWER,
    PASSAGES,
    PREAMBLE,
    PROMPT,
    QUESTION,
    TOLERANCE,
    answer_logprobs,
    laid_out,
    tokens,
)
from tests.tiny_models import TINY_MODELS

RIVALS = ("cacheblend_v", "cacheblend_k", "cacheblend_published", "gradual", "head", "cachecraft", "fusionrag")


@pytest.mark.parametrize("name", TINY_MODELS)
def test_everything_picked_is_full_prefill(name: str, tiny_model_path: Callable[[str], Path]) -> None:
    """Reference: a prefill of the whole prompt. Ours: every rival at ratio 1."""
    model = HuggingFaceModel.load(tiny_model_path(name))
    context, _ = prefill(model, PROMPT, room=NUM_ANSWER)
    prompt = laid_out(model)
    full = replace(prompt.copy(), whole=context)
    expected = answer_logprobs(model, full)
    for selector in RIVALS:
        blended = prompt.copy()
        computed = LAB_SELECTORS[selector].blend(blended, recompute_ratio=1.0)
        assert computed.selected.tolist() == prompt.candidates.tolist(), selector
        torch.testing.assert_close(answer_logprobs(model, blended), expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_rivals_select(tiny_model_path: Callable[[str], Path]) -> None:
    """Every selector takes its share, and what it says it computed costs what its parts do."""
    model = HuggingFaceModel.load(tiny_model_path("llama3rope"))
    prompt = laid_out(model)
    before = prompt.context.data.clone()
    question = model.flops.tokens(prompt.question_positions)
    full = model.flops.full_prefill(torch.arange(len(PROMPT)))
    for name, selector in LAB_SELECTORS.items():
        blended = prompt.copy()
        computed = selector.blend(blended, recompute_ratio=0.2)
        cost = model.flops.blend(computed, prompt.question_positions)
        assert len(computed.rows) == model.num_layers + 1, name
        for wider, narrower in zip(computed.rows, computed.rows[1:], strict=False):
            assert set(narrower.tolist()) <= set(wider.tolist()), name
        share = len(computed.selected) / len(prompt.candidates)
        if name not in ("none", "all", "probe_equal_flops", "gradual"):
            assert share == pytest.approx(0.2, abs=0.01), name
        assert question + model.flops.head <= cost < full, name
        untouched = torch.ones(prompt.num_context, dtype=torch.bool)
        untouched[torch.cat([*computed.rows])] = False
        torch.testing.assert_close(blended.context.data[:, :, untouched], before[:, :, untouched], rtol=0, atol=0)
    costs = {
        name: model.flops.blend(
            LAB_SELECTORS[name].blend(prompt.copy(), recompute_ratio=0.2), prompt.question_positions
        )
        for name in ("cacheblend_k", "probe_equal_flops")
    }
    assert costs["probe_equal_flops"] == pytest.approx(costs["cacheblend_k"], rel=0.02)
    assert costs["probe_equal_flops"] <= 1.001 * costs["cacheblend_k"]


def test_cachecraft_leaves_what_fits(tiny_model_path: Callable[[str], Path]) -> None:
    """A passage that stands behind what it was encoded behind gets no token; of the other those that looked back."""
    model = HuggingFaceModel.load(tiny_model_path("llama3rope"))
    first, second, third = PASSAGES
    contexts = [PREAMBLE + tokens(8, 40), PREAMBLE + tokens(9, 40), PREAMBLE + second]
    passages = []
    for passage, context in zip((first, second, third), contexts, strict=True):
        passages.append(EncodedPassage(passage, PassageEncoder(model, context).encode(passage), context))
    prompt = lay_out(model, PREAMBLE, prefill(model, PREAMBLE)[0].data, passages, QUESTION, room=len(ANSWER))
    assert len(prompt.passages) == len(prompt.encode_contexts) == 3
    selected = LAB_SELECTORS["cachecraft"].blend(prompt, recompute_ratio=0.1).selected.tolist()
    by_passage = [sum(start <= one < end for one in selected) for start, end in prompt.passages]
    assert by_passage[2] == 0 and by_passage[0] > 0 and by_passage[1] > 0
    assert sum(by_passage) == round(0.1 * sum(map(len, PASSAGES)))
