"""What `gather_quantize` computes, in plain PyTorch."""

from collections.abc import Sequence

from torch import Tensor

from kvblend.triton_kernels.codecs import quantize
from kvblend.triton_kernels.paged_kv import PagedKV
from kvblend.triton_kernels.staged import StagedPassage

__all__ = ["gather_quantize_reference"]


def gather_quantize_reference(
    caches: Sequence[PagedKV], slots: Tensor, passages: Sequence[StagedPassage], *, target_layers: Sequence[int]
) -> None:
    """Write `caches[i]` to layer `target_layers[i]` of each passage."""
    start = 0
    for passage in passages:
        targets = slots[start : start + passage.num_tokens]
        start += passage.num_tokens
        missing = targets < caches[0].block_size
        kept = targets.clamp(min=0)
        for cache, layer in zip(caches, target_layers, strict=True):
            for kind, view in enumerate((cache.keys, cache.values)):
                numbers = view[kept // cache.block_size, kept % cache.block_size]
                numbers[missing] = 0
                payload, scales = quantize(numbers, passage.codec)
                passage.payload[layer, kind] = payload
                passage.scales[layer, kind] = scales
