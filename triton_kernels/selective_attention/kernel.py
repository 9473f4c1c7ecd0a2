"""Attention of queries at arbitrary increasing positions over paged keys, each with its own causal limit."""

import triton
import triton.language as tl

from kvblend.triton_kernels.attention_kernels import LOG2E, attend_paged, store_rows


@triton.jit
def selective_attention_kernel(
    q,
    positions,
    starts,
    keys,
    values,
    block_tables,
    sinks,
    out,  # [PARTS, num_queries, NUM_HEADS, HEAD_DIM]
    lse,  # fp32 [PARTS, num_queries, NUM_HEADS]
    num_queries,
    num_tiles,
    scale,
    soft_cap,
    q_token_stride,
    q_head_stride,
    table_stride,
    key_block_stride,
    key_token_stride,
    key_head_stride,
    key_dim_stride,
    value_block_stride,
    value_token_stride,
    value_head_stride,
    value_dim_stride,
    WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PARTS: tl.constexpr,
):
    TOKENS: tl.constexpr = ROWS // GROUP
    # The tiles with most keys, the last ones, begin first.
    tile = num_tiles - 1 - tl.program_id(0) // PARTS
    part = tl.program_id(0) % PARTS
    kv_head = tl.program_id(1).to(tl.int64)
    request = tl.program_id(2).to(tl.int64)
    first_query = tl.load(starts + request)
    length = (tl.load(starts + request + 1) - first_query).to(tl.int32)
    first_token = tile * TOKENS
    if first_token >= length:
        return
    last_token = tl.minimum(first_token + TOKENS, length) - 1
    row = tl.arange(0, ROWS)
    token = first_token + row // GROUP
    inside = (row < TOKENS * GROUP) & (token < length)
    query = first_query + token
    head = kv_head * GROUP + row % GROUP
    dim = tl.arange(0, DIMS)
    q_tile = tl.load(
        q + (query * q_token_stride + head * q_head_stride)[:, None] + dim[None],
        mask=inside[:, None] & (dim < HEAD_DIM)[None],
        other=0.0,
    )
    row_positions = tl.load(positions + query, mask=inside, other=-1).to(tl.int32)
    first_position = tl.load(positions + first_query + first_token).to(tl.int32)
    num_keys = tl.load(positions + first_query + last_token).to(tl.int32) + 1
    first_visible = 0
    if WINDOW > 0:
        first_visible = tl.maximum(first_position + 1 - WINDOW, 0)
    lowest = first_visible // KEYS * KEYS
    keys_per_part = tl.cdiv(tl.cdiv(num_keys - lowest, KEYS), PARTS) * KEYS
    begin = lowest + part * keys_per_part
    end = tl.minimum(begin + keys_per_part, num_keys)
    middle = begin
    if WINDOW == 0:
        middle = tl.maximum(begin, tl.minimum(end, (first_position + 1) // KEYS * KEYS))

    weighted = tl.zeros([ROWS, DIMS], tl.float32)
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if HAS_SINKS:
        sink = tl.load(sinks + head, mask=inside, other=0.0) * LOG2E
        highest = tl.where(part == 0, sink, float("-inf"))
        total = tl.where(part == 0, total + 1.0, total)
    keys += kv_head * key_head_stride
    values += kv_head * value_head_stride
    block_table = block_tables + request * table_stride
    if WINDOW == 0:
        weighted, highest, total = attend_paged(
            q_tile,
            row_positions,
            keys,
            values,
            block_table,
            block_table,
            begin,
            middle,
            first_visible,
            num_keys,
            key_block_stride,
            key_token_stride,
            key_dim_stride,
            value_block_stride,
            value_token_stride,
            value_dim_stride,
            scale,
            soft_cap,
            weighted,
            highest,
            total,
            False,
            False,
            WINDOW,
            HAS_CAP,
            HEAD_DIM,
            DIMS,
            BLOCK_SIZE,
            KEYS,
        )
    weighted, highest, total = attend_paged(
        q_tile,
        row_positions,
        keys,
        values,
        block_table,
        block_table,
        middle,
        end,
        first_visible,
        num_keys,
        key_block_stride,
        key_token_stride,
        key_dim_stride,
        value_block_stride,
        value_token_stride,
        value_dim_stride,
        scale,
        soft_cap,
        weighted,
        highest,
        total,
        True,
        False,
        WINDOW,
        HAS_CAP,
        HEAD_DIM,
        DIMS,
        BLOCK_SIZE,
        KEYS,
    )
    store_rows(out, lse, part, query, head, inside, weighted, highest, total, num_queries, NUM_HEADS, HEAD_DIM, DIMS)
