"""Paged blocks into the passage KV layout, quantized on the way, all passages and layers in one launch."""

from collections.abc import Sequence

from torch import Tensor

from kvblend.triton_kernels.address_table import AddressTable
from kvblend.triton_kernels.codecs import LARGEST, Codec
from kvblend.triton_kernels.gather_quantize.reference import gather_quantize_reference
from kvblend.triton_kernels.launch import Launch, kernel_dtype, uses_kernel
from kvblend.triton_kernels.paged_kv import PagedLayers
from kvblend.triton_kernels.staged import StagedPassage

__all__ = ["gather_quantize", "gather_quantize_reference", "launches"]

ELEMENTS_PER_PROGRAM = 4096


def gather_quantize(
    caches: PagedLayers,
    slots: Tensor,
    num_tokens: Sequence[int],
    *,
    codec: Codec,
    out: Sequence[StagedPassage] | None = None,
    target_layers: Sequence[int] | None = None,
) -> list[StagedPassage]:
    """Read passages of `num_tokens` tokens each from the paged cache, keys turned as they are.

    slots: integers of all passages, one after the other; a token whose slot is negative or in the null block becomes
    zeros. `out`: where to write; by default new memory on the cache's device, of the cache's dtype when raw.
    `target_layers`: which layer of `out` each cache is; by default the i-th is the i-th. Raises ValueError.
    """
    cache = caches.first
    layers = list(range(len(caches.layers))) if target_layers is None else list(target_layers)
    if out is None:
        out = [
            StagedPassage.empty(
                max(layers) + 1,
                count,
                cache.num_kv_heads,
                cache.head_dim,
                codec=codec,
                dtype=cache.keys.dtype,
                device=cache.keys.device,
            )
            for count in num_tokens
        ]
    _check(caches, slots, num_tokens, codec, out, layers)
    if not out:
        return []
    if not uses_kernel(slots):
        gather_quantize_reference(caches.layers, slots, out, target_layers=layers)
    else:
        for launch in launches(caches, slots, out, target_layers=layers):
            launch.run()
    return list(out)


def launches(
    caches: PagedLayers, slots: Tensor, out: Sequence[StagedPassage], *, target_layers: Sequence[int]
) -> list[Launch]:
    """The launch that does this, its arguments already checked."""
    import triton

    from kvblend.triton_kernels.gather_quantize.kernel import gather_quantize_kernel

    cache, codec = caches.first, out[0].codec
    table = AddressTable.of(out, target_layers, device=slots.device)
    half = triton.next_power_of_2(cache.head_dim // 2)
    rows = max(1, ELEMENTS_PER_PROGRAM // (2 * half))
    return [
        Launch(
            gather_quantize_kernel,
            (triton.cdiv(table.longest * cache.num_kv_heads, rows), 2 * len(target_layers), len(out)),
            {
                "cache_addresses": caches.addresses,
                "target_addresses": table.addresses,
                "first_tokens": table.first_tokens,
                "slots": slots,
                **cache.strides(),
            },
            {
                "NUM_KV_HEADS": cache.num_kv_heads,
                "HEAD_DIM": cache.head_dim,
                "BLOCK_SIZE": cache.block_size,
                "CODEC": codec.name,
                "GROUP_SIZE": codec.group_size,
                "LARGEST": LARGEST.get(codec.name, 1.0),
                "PAYLOAD_DTYPE": kernel_dtype(out[0].payload.dtype),
                "CACHE_DTYPE": kernel_dtype(cache.keys.dtype),
                "ALIGNMENT": 16 if table.is_aligned and caches.is_aligned else 1,
                "ROWS": rows,
                "HALF": half,
            },
        )
    ]


def _check(
    caches: PagedLayers,
    slots: Tensor,
    num_tokens: Sequence[int],
    codec: Codec,
    out: Sequence[StagedPassage],
    target_layers: Sequence[int],
) -> None:
    if codec.name == "int8_channel":
        raise ValueError("gather_quantize cannot quantize by channel: a scale would need all tokens first")
    cache = caches.first
    if len(target_layers) != len(caches.layers):
        raise ValueError(f"{len(target_layers)} target_layers for {len(caches.layers)} caches")
    if [passage.num_tokens for passage in out] != list(num_tokens):
        raise ValueError(f"out holds {[passage.num_tokens for passage in out]} tokens, not {list(num_tokens)}")
    total = sum(num_tokens)
    if slots.shape != (total,) or slots.is_floating_point() or not slots.is_contiguous():
        raise ValueError(f"slots are {slots.dtype} {list(slots.shape)}, not contiguous integers [{total}]")
    if slots.device != cache.keys.device:
        raise ValueError(f"slots are on {slots.device}, the cache on {cache.keys.device}")
    for index, passage in enumerate(out):
        passage.check(cache.num_kv_heads, cache.head_dim, cache.keys.device)
        if passage.codec != codec or passage.payload.dtype != out[0].payload.dtype:
            raise ValueError(f"passage {index}'s codec is {passage.codec}, not {codec}")
        beyond = [layer for layer in target_layers if not 0 <= layer < passage.num_layers]
        if beyond:
            raise ValueError(f"target_layers name layer {beyond[0]}; passage {index} has {passage.num_layers}")
