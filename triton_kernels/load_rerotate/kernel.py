"""Staged passage KV to paged blocks: dequantize, rerotate, scatter.

A row is one head of one token; a program takes ROWS rows of one passage, layer and kind (keys or values). A row is
worked on as head_dim / 2 pairs: those that turn together, then those that only pass through.
"""

import triton
import triton.language as tl

from kvblend.triton_kernels.codec_kernels import e4m3_to_float


@triton.jit
def _load(
    payload,
    scales,
    rows,
    head,
    dims,
    inside,
    mask,
    FIRST_GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    CODEC: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """Dimensions `dims` of each row as fp32.

    FIRST_GROUP: the first dimension's group where `dims` are half a head in order, else -1."""
    half: tl.constexpr = HEAD_DIM // 2
    if CODEC == "raw":
        return tl.load(payload + rows[:, None] * HEAD_DIM + dims[None], mask=mask, other=0.0).to(tl.float32)
    if CODEC == "int8_channel":
        scale = tl.load(scales + head[:, None] * HEAD_DIM + dims[None], mask=mask, other=0.0).to(tl.float32)
        code = tl.load(payload + rows[:, None] * HEAD_DIM + dims[None], mask=mask, other=0)
        return code.to(tl.float32) * scale
    groups_of_row = scales + rows[:, None] * (HEAD_DIM // GROUP_SIZE)
    if FIRST_GROUP >= 0:
        # One load a group, spread over its dimensions.
        group = tl.arange(0, PAIRS // GROUP_SIZE)
        scale_mask = inside[:, None] & (group < half // GROUP_SIZE)[None]
        of_group = tl.load(groups_of_row + FIRST_GROUP + group[None], mask=scale_mask, other=0.0)
        spread = tl.broadcast_to(of_group[:, :, None], (ROWS, PAIRS // GROUP_SIZE, GROUP_SIZE))
        scale = tl.reshape(spread, (ROWS, PAIRS)).to(tl.float32)
    else:
        scale = tl.load(groups_of_row + (dims // GROUP_SIZE)[None], mask=mask, other=0.0).to(tl.float32)
    if CODEC == "int4":
        byte = tl.load(payload + rows[:, None] * half + (dims % half)[None], mask=mask, other=0)
        code = (byte >> (4 * (dims // half))[None].to(tl.uint8)) & 15
        return ((code.to(tl.int32) ^ 8) - 8).to(tl.float32) * scale
    code = tl.load(payload + rows[:, None] * HEAD_DIM + dims[None], mask=mask, other=0)
    if CODEC == "fp8":
        return e4m3_to_float(code) * scale
    return code.to(tl.float32) * scale


@triton.jit
def _move(
    payload,
    scales,
    cache,
    slots,
    deltas,
    cos,
    sin,
    num_tokens,
    num_positions,
    block_stride,
    token_stride,
    head_stride,
    dim_stride,
    TURN: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    ROTARY_PAIRS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CODEC: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    token = rows // NUM_KV_HEADS
    head = rows % NUM_KV_HEADS
    inside = rows < num_tokens * NUM_KV_HEADS
    slot = tl.load(slots + token, mask=inside, other=-1).to(tl.int64)
    inside = inside & (slot >= BLOCK_SIZE)
    target = (slot // BLOCK_SIZE) * block_stride + (slot % BLOCK_SIZE) * token_stride + head * head_stride

    pair = tl.arange(0, PAIRS)
    half: tl.constexpr = HEAD_DIM // 2
    first_dim = pair
    second_dim = pair + half
    if TURN:
        if INTERLEAVED:
            first_dim = tl.where(pair < ROTARY_PAIRS, 2 * pair, pair + ROTARY_PAIRS)
            second_dim = tl.where(pair < ROTARY_PAIRS, 2 * pair + 1, pair + half)
        elif half > ROTARY_PAIRS:
            first_dim = tl.where(pair < ROTARY_PAIRS, pair, pair + ROTARY_PAIRS)
            second_dim = tl.where(pair < ROTARY_PAIRS, pair + ROTARY_PAIRS, pair + half)
    mask = inside[:, None] & (pair < half)[None]
    in_order: tl.constexpr = not TURN or (not INTERLEAVED and half == ROTARY_PAIRS)
    first_group: tl.constexpr = 0 if in_order else -1
    second_group: tl.constexpr = half // GROUP_SIZE if in_order else -1
    first = _load(
        payload, scales, rows, head, first_dim, inside, mask, first_group, HEAD_DIM, CODEC, GROUP_SIZE, ROWS, PAIRS
    )
    second = _load(
        payload, scales, rows, head, second_dim, inside, mask, second_group, HEAD_DIM, CODEC, GROUP_SIZE, ROWS, PAIRS
    )
    if TURN:
        delta = tl.load(deltas + token, mask=inside, other=0).to(tl.int64)
        distance = tl.abs(delta)
        turning = mask & (pair < ROTARY_PAIRS)[None]
        known = turning & (distance < num_positions)[:, None]
        at = distance[:, None] * ROTARY_PAIRS + pair[None]
        # A difference beyond the table shows as NaN and reads nothing.
        cosine = tl.where(turning, tl.load(cos + at, mask=known, other=float("nan")), 1.0)
        sine = tl.where(turning, tl.load(sin + at, mask=known, other=float("nan")), 0.0)
        sine = tl.where((delta < 0)[:, None], -sine, sine)
        turned_first = first * cosine - second * sine
        second = second * cosine + first * sine
        first = turned_first
    dtype: tl.constexpr = cache.dtype.element_ty
    tl.store(cache + target[:, None] + first_dim[None] * dim_stride, first.to(dtype), mask=mask)
    tl.store(cache + target[:, None] + second_dim[None] * dim_stride, second.to(dtype), mask=mask)


@triton.jit(do_not_specialize=["num_positions"])
def load_rerotate_kernel(
    source_addresses,  # int64 [layers, passages, k|v, payload|scales]
    cache_addresses,  # int64 [layers, k|v]
    first_tokens,  # int64 [passages + 1]
    slots,
    deltas,
    cos,
    sin,
    num_positions,
    key_block_stride,
    key_token_stride,
    key_head_stride,
    key_dim_stride,
    value_block_stride,
    value_token_stride,
    value_head_stride,
    value_dim_stride,
    INTERLEAVED: tl.constexpr,
    ROTARY_PAIRS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CODEC: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    PAYLOAD_DTYPE: tl.constexpr,
    CACHE_DTYPE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    layer_and_kind = tl.program_id(1)
    passage = tl.program_id(2)
    first_token = tl.load(first_tokens + passage)
    num_tokens = tl.load(first_tokens + passage + 1) - first_token
    if tl.program_id(0) * ROWS >= num_tokens * NUM_KV_HEADS:
        return
    layer = (layer_and_kind // 2).to(tl.int64)
    source = source_addresses + ((layer * tl.num_programs(2) + passage) * 2 + layer_and_kind % 2) * 2
    payload = tl.multiple_of(tl.load(source).to(tl.pointer_type(PAYLOAD_DTYPE)), ALIGNMENT)
    scales = tl.load(source + 1).to(tl.pointer_type(tl.float16))
    cache = tl.multiple_of(tl.load(cache_addresses + layer_and_kind).to(tl.pointer_type(CACHE_DTYPE)), ALIGNMENT)
    slots += first_token
    deltas += first_token
    if layer_and_kind % 2 == 0:
        _move(
            payload,
            scales,
            cache,
            slots,
            deltas,
            cos,
            sin,
            num_tokens,
            num_positions,
            key_block_stride,
            key_token_stride,
            key_head_stride,
            key_dim_stride,
            True,
            INTERLEAVED,
            ROTARY_PAIRS,
            NUM_KV_HEADS,
            HEAD_DIM,
            BLOCK_SIZE,
            CODEC,
            GROUP_SIZE,
            ROWS,
            PAIRS,
        )
    else:
        _move(
            payload,
            scales,
            cache,
            slots,
            deltas,
            cos,
            sin,
            num_tokens,
            num_positions,
            value_block_stride,
            value_token_stride,
            value_head_stride,
            value_dim_stride,
            False,
            INTERLEAVED,
            ROTARY_PAIRS,
            NUM_KV_HEADS,
            HEAD_DIM,
            BLOCK_SIZE,
            CODEC,
            GROUP_SIZE,
            ROWS,
            PAIRS,
        )
