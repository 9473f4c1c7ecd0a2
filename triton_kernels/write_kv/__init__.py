"""Recomputed keys and values into paged blocks, both in one launch."""

from torch import Tensor

from kvblend.triton_kernels.launch import Launch, uses_kernel
from kvblend.triton_kernels.paged_kv import PagedKV
from kvblend.triton_kernels.write_kv.reference import write_kv_reference

__all__ = ["launches", "write_kv", "write_kv_reference"]

ROWS_PER_PROGRAM = 16


def write_kv(keys: Tensor, values: Tensor, cache: PagedKV, slots: Tensor) -> None:
    """Write tokens' `keys` and `values` to `slots` of the cache.

    keys, values: `[num_tokens, num_kv_heads, head_dim]` of the cache's dtype, of any strides but the last; slots:
    integers `[num_tokens]`. A token whose slot is negative or in the null block is dropped. Raises ValueError.
    """
    expected = (*slots.shape, cache.num_kv_heads, cache.head_dim)
    for name, tensor in (("keys", keys), ("values", values)):
        if tensor.shape != expected or tensor.dtype != cache.keys.dtype or tensor.stride(2) != 1:
            raise ValueError(
                f"{name} are {tensor.dtype} {list(tensor.shape)}, not {cache.keys.dtype} {list(expected)} with "
                "neighbouring dimensions"
            )
    if slots.dim() != 1 or slots.is_floating_point() or not slots.is_contiguous():
        raise ValueError(f"slots are {slots.dtype} {list(slots.shape)}, not contiguous integers [num_tokens]")
    for name, tensor in (("keys", keys), ("values", values), ("slots", slots)):
        if tensor.device != cache.keys.device:
            raise ValueError(f"{name} are on {tensor.device}, the cache on {cache.keys.device}")
    if not uses_kernel(keys):
        write_kv_reference(keys, values, cache, slots)
        return
    for launch in launches(keys, values, cache, slots):
        launch.run()


def launches(keys: Tensor, values: Tensor, cache: PagedKV, slots: Tensor) -> list[Launch]:
    """The launch that does this, its arguments already checked."""
    import triton

    from kvblend.triton_kernels.write_kv.kernel import write_kv_kernel

    return [
        Launch(
            write_kv_kernel,
            (triton.cdiv(len(slots) * cache.num_kv_heads, ROWS_PER_PROGRAM),),
            {
                "fresh_keys": keys,
                "fresh_values": values,
                "keys": cache.keys,
                "values": cache.values,
                "slots": slots,
                "num_tokens": len(slots),
                "fresh_key_token_stride": keys.stride(0),
                "fresh_key_head_stride": keys.stride(1),
                "fresh_value_token_stride": values.stride(0),
                "fresh_value_head_stride": values.stride(1),
                **cache.strides(),
            },
            {
                "NUM_KV_HEADS": cache.num_kv_heads,
                "HEAD_DIM": cache.head_dim,
                "DIMS": triton.next_power_of_2(cache.head_dim),
                "BLOCK_SIZE": cache.block_size,
                "ROWS": ROWS_PER_PROGRAM,
            },
        )
    ]
