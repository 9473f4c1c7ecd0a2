"""The tiny models can show a wrong KV: attention matters in each, and none repeats itself or guesses blindly."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tiny_models import SHAPE, TINY_MODELS

REACH = 64
"""Tokens behind the changed passage that see it in every model: the sliding window."""


@pytest.mark.parametrize("name", TINY_MODELS)
def test_changed_early_passage_changes_later_tokens(name: str, tiny_model_path: Callable[[str], Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path(name), dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    token_ids = torch.randint(20, SHAPE["vocab_size"], (1, 256), generator=generator)
    changed = token_ids.clone()
    changed[0, 20:84] = torch.randint(20, SHAPE["vocab_size"], (64,), generator=generator)
    with torch.no_grad():
        logprobs = model(token_ids).logits[0].log_softmax(-1)  # [num_tokens, vocab_size]
        changed_logprobs = model(changed).logits[0].log_softmax(-1)

    entropy = -(logprobs.exp() * logprobs).sum(-1)
    assert 0.5 < entropy.mean() < 0.8 * math.log(SHAPE["vocab_size"])
    greedy = logprobs.argmax(-1)
    assert greedy.unique().numel() > 200
    assert (greedy == token_ids[0]).float().mean() < 0.2  # not merely the last token again
    kl = (logprobs.exp() * (logprobs - changed_logprobs)).sum(-1)
    assert kl[:20].max() < 1e-6
    assert kl[84 : 84 + REACH].mean() > 1.0
    if name != "mistral_sw":  # there no layer sees further than the window
        assert kl[200:].mean() > 0.3
