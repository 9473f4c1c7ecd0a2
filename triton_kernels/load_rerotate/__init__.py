"""Staged passage KV into paged blocks at new positions, all passages and layers of a batch in one launch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kvblend.triton_kernels.launch import Launch, kernel_dtype, to_device, uses_kernel
from kvblend.triton_kernels.load_rerotate.reference import load_rerotate_reference
from kvblend.triton_kernels.paged_kv import PagedLayers
from kvblend.triton_kernels.staged import StagedPassage

__all__ = ["launches", "load_rerotate", "load_rerotate_reference"]

ELEMENTS_PER_PROGRAM = 4096


def load_rerotate(
    passages: Sequence[StagedPassage],
    caches: PagedLayers,
    slots: Tensor,
    deltas: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool,
    source_layers: Sequence[int] | None = None,
) -> None:
    """Dequantize `passages`, turn their keys by each token's difference in positions, and write them by slot.

    slots, deltas: integers `[num_tokens]` of all passages, one after the other. A token whose slot is negative or in
    the null block is dropped. cos, sin: fp32 `[num_positions, rotary_dim / 2]`, without magnitude scale, by the
    difference's absolute value (on a GPU, keys of a difference beyond the table become NaN; on CPU IndexError).
    `interleaved`: pairs are neighbours (GPT-J), not halves apart (neox). `source_layers`: which layer of the passages
    each cache is; by default the i-th is the i-th. All passages have one codec. Raises ValueError.
    """
    layers = list(range(len(caches.layers))) if source_layers is None else list(source_layers)
    _check(passages, caches, slots, deltas, cos, sin, layers)
    if not passages:
        return
    if not uses_kernel(slots):
        load_rerotate_reference(
            passages, caches.layers, slots, deltas, cos, sin, interleaved=interleaved, source_layers=layers
        )
        return
    for launch in launches(passages, caches, slots, deltas, cos, sin, interleaved=interleaved, source_layers=layers):
        launch.run()


def launches(
    passages: Sequence[StagedPassage],
    caches: PagedLayers,
    slots: Tensor,
    deltas: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool,
    source_layers: Sequence[int],
) -> list[Launch]:
    """The launch that does this, its arguments already checked."""
    import triton

    from kvblend.triton_kernels.load_rerotate.kernel import load_rerotate_kernel

    cache, codec = caches.first, passages[0].codec
    sources = torch.stack([passage.addresses()[list(source_layers)] for passage in passages])
    lengths = torch.tensor([0, *(passage.num_tokens for passage in passages)])
    table = to_device(torch.cat((sources.flatten(), lengths.cumsum(0))), slots.device)
    aligned = not bool((sources[..., 0] % 16).any()) and caches.is_aligned
    pairs = triton.next_power_of_2(cache.head_dim // 2)
    rows = max(1, ELEMENTS_PER_PROGRAM // (2 * pairs))
    longest = int(lengths.max())
    return [
        Launch(
            load_rerotate_kernel,
            (triton.cdiv(longest * cache.num_kv_heads, rows), 2 * len(source_layers), len(passages)),
            {
                "source_addresses": table[: sources.numel()],
                "cache_addresses": caches.addresses,
                "first_tokens": table[sources.numel() :],
                "slots": slots,
                "deltas": deltas,
                "cos": cos,
                "sin": sin,
                "num_layers": len(source_layers),
                "num_positions": cos.shape[0],
                **cache.strides(),
            },
            {
                "INTERLEAVED": interleaved,
                "ROTARY_PAIRS": cos.shape[1],
                "NUM_KV_HEADS": cache.num_kv_heads,
                "HEAD_DIM": cache.head_dim,
                "BLOCK_SIZE": cache.block_size,
                "CODEC": codec.name,
                "GROUP_SIZE": codec.group_size,
                "PAYLOAD_DTYPE": kernel_dtype(passages[0].payload.dtype),
                "CACHE_DTYPE": kernel_dtype(cache.keys.dtype),
                "ALIGNMENT": 16 if aligned else 1,
                "ROWS": rows,
                "PAIRS": pairs,
            },
        )
    ]


def _check(
    passages: Sequence[StagedPassage],
    caches: PagedLayers,
    slots: Tensor,
    deltas: Tensor,
    cos: Tensor,
    sin: Tensor,
    source_layers: Sequence[int],
) -> None:
    cache = caches.first
    device = cache.keys.device
    if len(source_layers) != len(caches.layers):
        raise ValueError(f"{len(source_layers)} source_layers for {len(caches.layers)} caches")
    for index, passage in enumerate(passages):
        passage.check(cache.num_kv_heads, cache.head_dim, device)
        if passage.codec != passages[0].codec or passage.payload.dtype != passages[0].payload.dtype:
            raise ValueError(f"passage {index}'s codec {passage.codec} is not that of passage 0, {passages[0].codec}")
        beyond = [layer for layer in source_layers if not 0 <= layer < passage.num_layers]
        if beyond:
            raise ValueError(f"source_layers name layer {beyond[0]}; passage {index} has {passage.num_layers}")
    num_tokens = sum(passage.num_tokens for passage in passages)
    for name, tensor in (("slots", slots), ("deltas", deltas)):
        if tensor.shape != (num_tokens,) or tensor.is_floating_point() or not tensor.is_contiguous():
            raise ValueError(f"{name} are {tensor.dtype} {list(tensor.shape)}, not contiguous integers [{num_tokens}]")
    if cos.dim() != 2 or cos.shape != sin.shape or not 0 < 2 * cos.shape[1] <= cache.head_dim:
        raise ValueError(
            f"cos {list(cos.shape)} and sin {list(sin.shape)} must be [num_positions, up to {cache.head_dim // 2}]"
        )
    for name, tensor in (("cos", cos), ("sin", sin)):
        if tensor.dtype != torch.float32 or not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous fp32, not {tensor.dtype} of strides {tensor.stride()}")
    for name, tensor in (("slots", slots), ("deltas", deltas), ("cos", cos), ("sin", sin)):
        if tensor.device != device:
            raise ValueError(f"{name} are on {tensor.device}, the cache on {device}")
