"""Paged blocks to staged passage KV, quantized on the way.

A row is one head of one token; a program takes ROWS rows of one passage, layer and kind (keys or values), each as its
two halves, so that int4's byte (dimension j, dimension j + head_dim / 2) is at hand.
"""

import triton
import triton.language as tl

from kvblend.triton_kernels.codec_kernels import float_to_e4m3, round_to_even


@triton.jit
def _encode(
    numbers,
    CODEC: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    LARGEST: tl.constexpr,
    ROWS: tl.constexpr,
    HALF: tl.constexpr,
):
    """Codes `[ROWS, HALF]` and fp16 scales `[ROWS, HALF // GROUP_SIZE]` of fp32 numbers."""
    groups = tl.reshape(numbers, (ROWS, HALF // GROUP_SIZE, GROUP_SIZE))
    scales = (tl.max(tl.abs(groups), 2) / LARGEST).to(tl.float16)
    divisors = scales.to(tl.float32)
    divisors = tl.where(divisors > 0.0, divisors, float("inf"))
    codes = groups / divisors[:, :, None]
    codes = tl.reshape(tl.minimum(tl.maximum(codes, -LARGEST), LARGEST), (ROWS, HALF))
    if CODEC == "fp8":
        return float_to_e4m3(codes), scales
    else:
        return round_to_even(codes).to(tl.int8), scales


@triton.jit
def _move(
    payload,
    scales,
    cache,
    slots,
    num_tokens,
    block_stride,
    token_stride,
    head_stride,
    dim_stride,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CODEC: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    LARGEST: tl.constexpr,
    PAYLOAD_DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    HALF: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    token = rows // NUM_KV_HEADS
    head = rows % NUM_KV_HEADS
    inside = rows < num_tokens * NUM_KV_HEADS
    slot = tl.load(slots + token, mask=inside, other=-1).to(tl.int64)
    source = (slot // BLOCK_SIZE) * block_stride + (slot % BLOCK_SIZE) * token_stride + head * head_stride
    dim = tl.arange(0, HALF)
    half: tl.constexpr = HEAD_DIM // 2
    stored = inside[:, None] & (dim < half)[None]
    readable = stored & (slot >= BLOCK_SIZE)[:, None]
    address = cache + source[:, None] + dim[None] * dim_stride
    first = tl.load(address, mask=readable, other=0.0)
    second = tl.load(address + half * dim_stride, mask=readable, other=0.0)
    if CODEC == "raw":
        target = payload + rows[:, None] * HEAD_DIM + dim[None]
        tl.store(target, first.to(PAYLOAD_DTYPE), mask=stored)
        tl.store(target + half, second.to(PAYLOAD_DTYPE), mask=stored)
    else:
        first_codes, first_scales = _encode(first.to(tl.float32), CODEC, GROUP_SIZE, LARGEST, ROWS, HALF)
        second_codes, second_scales = _encode(second.to(tl.float32), CODEC, GROUP_SIZE, LARGEST, ROWS, HALF)
        group = tl.arange(0, HALF // GROUP_SIZE)
        scale_target = scales + rows[:, None] * (HEAD_DIM // GROUP_SIZE) + group[None]
        scale_mask = inside[:, None] & (group < half // GROUP_SIZE)[None]
        tl.store(scale_target, first_scales, mask=scale_mask)
        tl.store(scale_target + half // GROUP_SIZE, second_scales, mask=scale_mask)
        if CODEC == "int4":
            byte = (first_codes & 15) | (second_codes << 4)
            tl.store(payload + rows[:, None] * half + dim[None], byte.to(tl.uint8, bitcast=True), mask=stored)
        else:
            target = payload + rows[:, None] * HEAD_DIM + dim[None]
            tl.store(target, first_codes, mask=stored)
            tl.store(target + half, second_codes, mask=stored)


@triton.jit
def gather_quantize_kernel(
    cache_addresses,  # int64 [layers, k|v]
    target_addresses,  # int64 [layers, passages, k|v, payload|scales]
    first_tokens,  # int64 [passages + 1]
    slots,
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
    BLOCK_SIZE: tl.constexpr,
    CODEC: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    LARGEST: tl.constexpr,
    PAYLOAD_DTYPE: tl.constexpr,
    CACHE_DTYPE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    ROWS: tl.constexpr,
    HALF: tl.constexpr,
):
    layer_and_kind = tl.program_id(1)
    passage = tl.program_id(2)
    first_token = tl.load(first_tokens + passage)
    num_tokens = tl.load(first_tokens + passage + 1) - first_token
    if tl.program_id(0) * ROWS >= num_tokens * NUM_KV_HEADS:
        return
    layer = (layer_and_kind // 2).to(tl.int64)
    target = target_addresses + ((layer * tl.num_programs(2) + passage) * 2 + layer_and_kind % 2) * 2
    payload = tl.multiple_of(tl.load(target).to(tl.pointer_type(PAYLOAD_DTYPE)), ALIGNMENT)
    scales = tl.load(target + 1).to(tl.pointer_type(tl.float16))
    cache = tl.multiple_of(tl.load(cache_addresses + layer_and_kind).to(tl.pointer_type(CACHE_DTYPE)), ALIGNMENT)
    slots += first_token
    if layer_and_kind % 2 == 0:
        _move(
            payload,
            scales,
            cache,
            slots,
            num_tokens,
            key_block_stride,
            key_token_stride,
            key_head_stride,
            key_dim_stride,
            NUM_KV_HEADS,
            HEAD_DIM,
            BLOCK_SIZE,
            CODEC,
            GROUP_SIZE,
            LARGEST,
            PAYLOAD_DTYPE,
            ROWS,
            HALF,
        )
    else:
        _move(
            payload,
            scales,
            cache,
            slots,
            num_tokens,
            value_block_stride,
            value_token_stride,
            value_head_stride,
            value_dim_stride,
            NUM_KV_HEADS,
            HEAD_DIM,
            BLOCK_SIZE,
            CODEC,
            GROUP_SIZE,
            LARGEST,
            PAYLOAD_DTYPE,
            ROWS,
            HALF,
        )
