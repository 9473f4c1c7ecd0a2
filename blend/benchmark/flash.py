"""Full prefill by PyTorch's flash attention, the baseline, through the same modules of the same model."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kvblend.blend.hf import HuggingFaceModel
from kvblend.blend.model import Attend

__all__ = ["encode", "flash_attention", "full_prefill"]


def flash_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Causal attention of a whole prompt, `[n, heads, head_dim]`; RuntimeError where flash attention cannot do it."""
    if not q.is_cuda:  # flash attention for CPU wants as many KV heads as query heads
        group = q.shape[1] // k.shape[1]
        k, v = (part.repeat_interleave(group, dim=1) for part in (k, v))
    q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return out[0].transpose(0, 1)


def full_prefill(model: HuggingFaceModel, token_ids: Tensor, positions: Tensor) -> Tensor:
    """The last token's logits, fp32 `[1, vocabulary]`. KV is not even kept, which is in the baseline's favour."""
    return model.logits(token_ids, positions, _attend(model), num_last=1)


def encode(model: HuggingFaceModel, token_ids: Tensor) -> Tensor:
    """Passage KV behind no encode context, `[layer, k|v, token, kv_head, head_dim]`."""
    kv, attend = model.empty_kv(len(token_ids)), _attend(model)

    def attend_and_keep(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kv[layer, 0], kv[layer, 1] = k, v
        return attend(layer, q, k, v)

    model.forward(token_ids, torch.arange(len(token_ids), device=model.device), attend_and_keep)
    return kv


def _attend(model: HuggingFaceModel) -> Attend:
    assert all(spec.sliding_window is None and spec.soft_cap is None for spec in model.specs)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flash_attention(q, k, v, scale=model.specs[layer].scale)

    return attend
