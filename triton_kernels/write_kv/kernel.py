"""Fresh keys and values into paged blocks by slot. A row is one head of one token."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_tokens"])
def write_kv_kernel(
    fresh_keys,
    fresh_values,
    keys,
    values,
    slots,
    num_tokens,
    fresh_key_token_stride,
    fresh_key_head_stride,
    fresh_value_token_stride,
    fresh_value_head_stride,
    key_block_stride,
    key_token_stride,
    key_head_stride,
    key_dim_stride,
    value_block_stride,
    value_token_stride,
    value_head_stride,
    value_dim_stride,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    token = row // NUM_KV_HEADS
    head = row % NUM_KV_HEADS
    slot = tl.load(slots + token, mask=token < num_tokens, other=-1).to(tl.int64)
    block = slot // BLOCK_SIZE
    place = slot % BLOCK_SIZE
    dim = tl.arange(0, DIMS)
    mask = (slot >= BLOCK_SIZE)[:, None] & (dim < HEAD_DIM)[None]
    key_source = token * fresh_key_token_stride + head * fresh_key_head_stride
    key_target = block * key_block_stride + place * key_token_stride + head * key_head_stride
    key = tl.load(fresh_keys + key_source[:, None] + dim[None], mask=mask, other=0.0)
    tl.store(keys + key_target[:, None] + dim[None] * key_dim_stride, key, mask=mask)
    value_source = token * fresh_value_token_stride + head * fresh_value_head_stride
    value_target = block * value_block_stride + place * value_token_stride + head * value_head_stride
    value = tl.load(fresh_values + value_source[:, None] + dim[None], mask=mask, other=0.0)
    tl.store(values + value_target[:, None] + dim[None] * value_dim_stride, value, mask=mask)
