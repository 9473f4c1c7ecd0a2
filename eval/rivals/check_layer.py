"""Run a prompt's context up to a check layer, as CacheBlend does to see where reused KV deviates."""

from contextlib import suppress
from typing import Literal

import torch
from torch import Tensor

from kvblend.blend.selectors import LabPrompt

__all__ = ["Deviation", "check_layer", "deviation_scores"]

Deviation = Literal["k", "v", "kv"]


class _Checked(Exception):
    """Ends a forward: the rest of the layers is not wanted."""


def check_layer(prompt: LabPrompt, layer: int) -> Tensor:
    """Recompute all context tokens up to `layer`'s keys and values, and write these.

    Returns the reused KV of `layer` as it was, `[k|v, token, kv_head, head_dim]`.
    """
    context = prompt.context
    positions = torch.arange(prompt.num_context, device=prompt.token_ids.device)
    reused = context.data[layer].clone()

    def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        context.write(index, positions, k, v)
        if index == layer:
            raise _Checked
        return context.attend(index, q, positions)

    with suppress(_Checked):
        prompt.model.forward(prompt.token_ids[positions], positions, attend)
    return reused


def deviation_scores(deviation: Deviation, reused: Tensor, computed: Tensor) -> Tensor:
    """Squared distance of computed keys, values or both from the reused ones, fp32 `[token]`.

    Both are `[k|v, token, kv_head, head_dim]`.
    """
    squared = (computed.float() - reused.float()).square().sum((2, 3))
    return {"k": squared[0], "v": squared[1], "kv": squared.sum(0)}[deviation]
