"""Full reuse by its definition, in one forward of a Hugging Face model: no cache, no rerotation, no vLLM.

    [preamble]([encode context][passage])...([encode context][passage])[question][answer]

Every token has the position it has in the prompt; each passage's encode context stands just in front of it (at negative
positions where need be). A mask lets a passage see its own encode context and itself, the preamble itself, and
the question and answer the preamble, every passage and themselves.
"""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

__all__ = ["full_reuse_logprobs"]


def full_reuse_logprobs(
    model_path: Path,
    *,
    preamble: list[int],
    encode_context: list[int],
    passages: list[list[int]],
    question: list[int],
    answer: list[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """Log-probabilities `[len(answer), vocabulary]` under full reuse, in fp32, with the weights rounded to `dtype`."""
    tokens, positions, spans = list(preamble), list(range(len(preamble))), [(0, len(preamble), "preamble")]
    start = len(preamble)
    for passage in passages:
        spans.append((len(tokens), len(tokens) + len(encode_context), "encode context"))
        tokens += encode_context
        positions += range(start - len(encode_context), start)
        spans.append((len(tokens), len(tokens) + len(passage), "passage"))
        tokens += passage
        positions += range(start, start + len(passage))
        start += len(passage)
    tail = question + answer[:-1]
    spans.append((len(tokens), len(tokens) + len(tail), "tail"))
    tokens += tail
    positions += range(start, start + len(tail))

    sees = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
    for index, (first, last, kind) in enumerate(spans):
        sees[first:last, first:last] = torch.ones(last - first, last - first, dtype=torch.bool).tril()
        if kind == "passage":
            before, upto, _ = spans[index - 1]
            sees[first:last, before:upto] = True
        if kind == "tail":
            for before, upto, other in spans[:index]:
                if other != "encode context":
                    sees[first:last, before:upto] = True

    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype, attn_implementation="eager").float().eval()
    position_ids = torch.tensor(positions)
    distance = position_ids[:, None] - position_ids[None]
    window = getattr(model.config, "sliding_window", None)
    near = sees if window is None else sees & (distance < window)
    kinds = set(getattr(model.config, "layer_types", None) or [])
    mask: torch.Tensor | dict[str, torch.Tensor]
    if kinds == {"full_attention", "sliding_attention"}:
        mask = {"full_attention": _additive(sees), "sliding_attention": _additive(near)}
    else:
        mask = _additive(near)
    with torch.inference_mode():
        logits = model(
            input_ids=torch.tensor([tokens]), attention_mask=mask, position_ids=position_ids[None], use_cache=False
        ).logits[0, -len(answer) :]
    logprobs: torch.Tensor = logits.log_softmax(-1)
    return logprobs


def _additive(sees: torch.Tensor) -> torch.Tensor:
    return torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)[None, None]
