"""How far fresh keys or values lie from the cached ones: what the cacheblend selector ranks tokens by."""

import torch
from torch import Tensor

from kvblend.triton_kernels.kv_deviation.reference import kv_deviation_reference
from kvblend.triton_kernels.launch import Launch, uses_kernel

__all__ = ["kv_deviation", "kv_deviation_reference", "launches"]

TOKENS_PER_PROGRAM = 8


def kv_deviation(fresh: Tensor, cached: Tensor, slots: Tensor) -> Tensor:
    """Squared deviation of `fresh` from `cached` by token, summed over heads and dimensions in fp32.

    fresh: `[num_tokens, num_kv_heads, head_dim]`; cached: `keys` or `values` of a PagedKV; slots: integers
    `[num_tokens]`. Returns fp32 `[num_tokens]`; 0 for a token whose slot is negative or in the null block. Raises
    ValueError.
    """
    if cached.dim() != 4 or fresh.dim() != 3 or fresh.shape[1:] != cached.shape[2:] or fresh.stride(2) != 1:
        raise ValueError(
            f"fresh {list(fresh.shape)} does not fit cached {list(cached.shape)}: "
            "[num_tokens, num_kv_heads, head_dim] and [num_blocks, block_size, num_kv_heads, head_dim]"
        )
    if slots.shape != fresh.shape[:1] or slots.is_floating_point() or not slots.is_contiguous():
        raise ValueError(f"slots are {slots.dtype} {list(slots.shape)}, not contiguous integers [{fresh.shape[0]}]")
    if not fresh.device == cached.device == slots.device:
        raise ValueError(f"fresh, cached and slots are on {fresh.device}, {cached.device} and {slots.device}")
    if not uses_kernel(fresh):
        return kv_deviation_reference(fresh, cached, slots)
    out = torch.empty(fresh.shape[0], dtype=torch.float32, device=fresh.device)
    for launch in launches(fresh, cached, slots, out):
        launch.run()
    return out


def launches(fresh: Tensor, cached: Tensor, slots: Tensor, out: Tensor) -> list[Launch]:
    """The launch that does this, its arguments already checked."""
    import triton

    from kvblend.triton_kernels.kv_deviation.kernel import kv_deviation_kernel

    names = ("block_stride", "token_stride", "head_stride", "dim_stride")
    return [
        Launch(
            kv_deviation_kernel,
            (triton.cdiv(fresh.shape[0], TOKENS_PER_PROGRAM),),
            {
                "fresh": fresh,
                "cached": cached,
                "slots": slots,
                "out": out,
                "num_tokens": fresh.shape[0],
                "fresh_token_stride": fresh.stride(0),
                "fresh_head_stride": fresh.stride(1),
                **dict(zip(names, cached.stride(), strict=True)),
            },
            {
                "NUM_KV_HEADS": cached.shape[2],
                "HEAD_DIM": cached.shape[3],
                "DIMS": triton.next_power_of_2(cached.shape[3]),
                "BLOCK_SIZE": cached.shape[1],
                "TOKENS": TOKENS_PER_PROGRAM,
            },
        )
    ]
