"""Attention of queries at arbitrary increasing positions over paged keys, each with its own causal limit."""

import triton
import triton.language as tl

from kvblend.triton_kernels.attention_kernels import attend_causal
from kvblend.triton_kernels.row_kernels import begin_rows, load_rows, part_of_keys, store_rows


@triton.jit(do_not_specialize=["num_queries", "num_tiles", "table_stride"])
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
    q_tile, row_positions, query, head, inside = load_rows(
        q,
        positions,
        first_query,
        first_token,
        length,
        kv_head,
        q_token_stride,
        q_head_stride,
        GROUP,
        HEAD_DIM,
        DIMS,
        ROWS,
    )
    first_position = tl.load(positions + first_query + first_token).to(tl.int32)
    num_keys = tl.load(positions + first_query + last_token).to(tl.int32) + 1
    first_visible, begin, end = part_of_keys(first_position, num_keys, part, WINDOW, KEYS, PARTS)
    weighted, highest, total = begin_rows(sinks, head, inside, part, HAS_SINKS, ROWS, DIMS)
    keys += kv_head * key_head_stride
    values += kv_head * value_head_stride
    block_table = block_tables + request * table_stride
    weighted, highest, total = attend_causal(
        q_tile,
        row_positions,
        keys,
        values,
        block_table,
        block_table,
        block_table,
        0,
        begin,
        end,
        first_position,
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
        "",
        WINDOW,
        HAS_CAP,
        HEAD_DIM,
        DIMS,
        BLOCK_SIZE,
        KEYS,
    )
    store_rows(out, lse, part, query, head, inside, weighted, highest, total, num_queries, NUM_HEADS, HEAD_DIM, DIMS)
