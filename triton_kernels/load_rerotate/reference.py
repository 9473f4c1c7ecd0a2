"""What `load_rerotate` computes, in plain PyTorch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kvblend.triton_kernels.codecs import dequantize
from kvblend.triton_kernels.paged_kv import PagedKV
from kvblend.triton_kernels.staged import StagedPassage

__all__ = ["load_rerotate_reference", "turn"]


def turn(keys: Tensor, cos: Tensor, sin: Tensor, deltas: Tensor, *, interleaved: bool) -> Tensor:
    """Turn `keys` fp32 `[num_tokens, num_kv_heads, head_dim]` by each token's difference in positions.

    cos, sin: fp32 `[num_positions, rotary_dim / 2]` by absolute difference; a negative one turns the other way.
    """
    rotary_dim = 2 * cos.shape[1]
    rows = deltas.abs().long()
    cosines = cos[rows][:, None]
    sines = (sin[rows] * deltas.sign()[:, None])[:, None]
    turned, passed = keys[..., :rotary_dim], keys[..., rotary_dim:]
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned.chunk(2, dim=-1)
    pairs = (first * cosines - second * sines, second * cosines + first * sines)
    result = torch.stack(pairs, dim=-1).flatten(-2) if interleaved else torch.cat(pairs, dim=-1)
    return torch.cat((result, passed), dim=-1)


def load_rerotate_reference(
    passages: Sequence[StagedPassage],
    caches: Sequence[PagedKV],
    slots: Tensor,
    deltas: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool,
    source_layers: Sequence[int],
) -> None:
    """Write each passage's layer `source_layers[i]` to `caches[i]`."""
    start = 0
    for passage in passages:
        end = start + passage.num_tokens
        kept = slots[start:end] >= caches[0].block_size
        targets = slots[start:end][kept]
        for cache, layer in zip(caches, source_layers, strict=True):
            blocks, tokens = targets // cache.block_size, targets % cache.block_size
            keys, values = dequantize(passage.payload[layer], passage.scales[layer], passage.codec)
            keys = turn(keys, cos, sin, deltas[start:end], interleaved=interleaved)
            cache.keys[blocks, tokens] = keys[kept].to(cache.keys.dtype)
            cache.values[blocks, tokens] = values[kept].to(cache.values.dtype)
        start = end
