"""The Hugging Face adapter on every architecture: full prefill, both ends of the recompute ratio, counted FLOPs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from kvblend.blend import SELECTORS, LabPrompt
from kvblend.blend.hf import EncodedPassage, HuggingFaceModel, PassageEncoder, extend, lay_out, prefill
from kvblend.blend.selectors import Serving
from kvblend.core.errors import UnsupportedModelError
from tests.tiny_models import TINY_MODELS
from tests.vllm_connector.full_reuse import full_reuse_logprobs

NUM_ANSWER = 6
TOLERANCE = 5e-4
"""Logits and logprobs in fp32."""


def tokens(seed: int, count: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1000, 40000, (count,), generator=generator).tolist()


PREAMBLE, WARM, QUESTION, ANSWER = tokens(1, 21), tokens(2, 43), tokens(3, 14), tokens(4, NUM_ANSWER)
PASSAGES = [tokens(5, 60), tokens(6, 71), tokens(7, 55)]
PROMPT = [*PREAMBLE, *(token for passage in PASSAGES for token in passage), *QUESTION]


def laid_out(model: HuggingFaceModel) -> LabPrompt:
    encoder = PassageEncoder(model, PREAMBLE + WARM)
    passages = [EncodedPassage(passage, encoder.encode(passage), encoder.encode_context) for passage in PASSAGES]
    return lay_out(model, PREAMBLE, prefill(model, PREAMBLE)[0].data, passages, QUESTION, room=NUM_ANSWER)


def answer_logprobs(model: HuggingFaceModel, prompt: LabPrompt) -> torch.Tensor:
    logits = extend(model, prompt.whole, QUESTION + ANSWER[:-1], start=prompt.num_context, num_last=NUM_ANSWER)
    return logits.log_softmax(-1)


@pytest.mark.parametrize("name", TINY_MODELS)
def test_blend(name: str, tiny_model_path: Callable[[str], Path]) -> None:
    """References: the model's own forward; full reuse by its definition. Ours: the adapter at ratios 1 and 0."""
    path = tiny_model_path(name)
    own = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        logits = own(torch.tensor([PROMPT + ANSWER[:-1]])).logits[0, -NUM_ANSWER:]
    expected = logits.log_softmax(-1)
    model = HuggingFaceModel.load(path)
    context, _ = prefill(model, PROMPT, room=NUM_ANSWER)
    again = extend(model, context, ANSWER[:-1], start=len(PROMPT), num_last=NUM_ANSWER - 1)
    torch.testing.assert_close(again, logits[1:], rtol=TOLERANCE, atol=TOLERANCE)

    prompt = laid_out(model)
    for selector in ("probe", "all"):
        blended = prompt.copy()
        computed = Serving(SELECTORS[selector]).blend(blended, recompute_ratio=1.0)
        assert computed.selected.tolist() == prompt.candidates.tolist(), selector
        torch.testing.assert_close(answer_logprobs(model, blended), expected, rtol=TOLERANCE, atol=TOLERANCE)
        torch.testing.assert_close(blended.context.data, context.data[:, :, : prompt.num_context], rtol=1e-3, atol=1e-3)

    reused = prompt.copy()
    assert len(Serving(SELECTORS["probe"]).blend(reused, recompute_ratio=0.0).selected) == 0
    ours = answer_logprobs(model, reused)
    reference = full_reuse_logprobs(
        path,
        preamble=PREAMBLE,
        encode_context=PREAMBLE + WARM,
        passages=PASSAGES,
        question=QUESTION,
        answer=ANSWER,
        dtype=torch.float32,
    )
    chosen = torch.tensor(ANSWER)[:, None]
    torch.testing.assert_close(ours.gather(1, chosen), reference.gather(1, chosen), rtol=2e-3, atol=2e-3)
    # the negative control: full reuse is not full prefill
    assert float((ours - expected).abs().max()) > 20 * TOLERANCE


@pytest.mark.parametrize("name", ["llama3rope", "qwen3moe"])
def test_counted_flops(name: str, tiny_model_path: Callable[[str], Path]) -> None:
    """Reference: the operators' FLOPs in a forward that attends to all keys. Ours: the count, less unseen keys."""
    path = tiny_model_path(name)
    own = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    if name == "qwen3moe":
        own.set_experts_implementation("eager")
    num_tokens = 70
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        own(torch.tensor([PROMPT[:num_tokens]]), logits_to_keep=1)
    flops = HuggingFaceModel.load(path).flops
    unseen_keys = num_tokens * num_tokens - num_tokens * (num_tokens + 1) // 2
    unseen = unseen_keys * flops.attention_per_key * flops.num_layers
    rotation = counter.get_total_flops() - unseen - flops.full_prefill(torch.arange(num_tokens))
    assert 0 <= rotation < 0.001 * counter.get_total_flops()  # the angles are a matrix product in some models


def test_length_dependent_rotation_is_refused(tiny_model_path: Callable[[str], Path]) -> None:
    """Angles that change with the prompt's length cannot be moved."""
    own = AutoModelForCausalLM.from_pretrained(tiny_model_path("qwen2"), dtype=torch.float32)
    own.model.rotary_emb.rope_type = "dynamic"
    with pytest.raises(UnsupportedModelError, match="dynamic"):
        HuggingFaceModel(own)
