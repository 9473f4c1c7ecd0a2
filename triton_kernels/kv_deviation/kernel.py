"""Squared deviation of fresh from cached keys or values, by token."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_tokens"])
def kv_deviation_kernel(
    fresh,
    cached,
    slots,
    out,  # fp32 [num_tokens]
    num_tokens,
    fresh_token_stride,
    fresh_head_stride,
    block_stride,
    token_stride,
    head_stride,
    dim_stride,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TOKENS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    inside = token < num_tokens
    slot = tl.load(slots + token, mask=inside, other=-1).to(tl.int64)
    dim = tl.arange(0, DIMS)
    mask = (slot >= BLOCK_SIZE)[:, None] & (dim < HEAD_DIM)[None]
    fresh_at = fresh + (token * fresh_token_stride)[:, None] + dim[None]
    cached_row = (slot // BLOCK_SIZE) * block_stride + (slot % BLOCK_SIZE) * token_stride
    cached_at = cached + cached_row[:, None] + dim[None] * dim_stride
    total = tl.zeros([TOKENS, DIMS], tl.float32)
    for head in range(NUM_KV_HEADS):
        new = tl.load(fresh_at + head * fresh_head_stride, mask=mask, other=0.0).to(tl.float32)
        old = tl.load(cached_at + head * head_stride, mask=mask, other=0.0).to(tl.float32)
        total += (new - old) * (new - old)
    tl.store(out + token, tl.sum(total, 1), mask=inside)
