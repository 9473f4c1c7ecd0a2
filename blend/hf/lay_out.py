"""Put a prompt together from a preamble, passage KV and a question."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvblend.blend.dense_context import DenseContextKV
from kvblend.blend.hf.model import HuggingFaceModel
from kvblend.blend.selectors.lab import LabPrompt

__all__ = ["EncodedPassage", "lay_out"]


@dataclass(frozen=True)
class EncodedPassage:
    """A passage and its KV `[layer, k|v, token, kv_head, head_dim]`, as captured behind `encode_context`."""

    token_ids: Sequence[int]
    kv: Tensor
    encode_context: Sequence[int]


def lay_out(
    model: HuggingFaceModel,
    preamble: Sequence[int],
    preamble_kv: Tensor,
    passages: Sequence[EncodedPassage],
    question: Sequence[int],
    *,
    room: int = 0,
) -> LabPrompt:
    """Lay out full reuse: `[preamble][passage]...[passage]`, keys moved to where they are now.

    A passage that was encoded behind just what precedes it here is exact: it is not in the prompt's `passages`, and so
    never selected. The question's KV is not computed; there is room for it and for `room` more tokens.
    """
    token_ids = [*preamble]
    reused, encode_contexts, parts = [], [], [preamble_kv]
    for passage in passages:
        start = len(token_ids)
        kv = passage.kv.clone()
        model.rerotate(kv, delta=start - len(passage.encode_context))
        parts.append(kv)
        if list(passage.encode_context) != token_ids:
            reused.append((start, start + len(passage.token_ids)))
            encode_contexts.append(tuple(passage.encode_context))
        token_ids += passage.token_ids
    num_context = len(token_ids)
    token_ids += question
    parts.append(model.empty_kv(len(question) + room))
    data = torch.cat(parts, dim=2)
    readable = torch.zeros(data.shape[2], dtype=torch.bool, device=data.device)
    readable[:num_context] = True
    return LabPrompt(
        model=model,
        whole=DenseContextKV(model.specs, data, readable),
        token_ids=torch.tensor(token_ids, device=data.device),
        num_context=num_context,
        passages=tuple(reused),
        encode_contexts=tuple(encode_contexts),
        flops=model.flops,
    )
