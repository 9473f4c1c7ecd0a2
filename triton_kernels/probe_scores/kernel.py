"""First pass of a probe: the question's attention over the paged context and its own keys, with log-sum-exp.

It leaves the norms of the context's values for the second pass, which then reads no values.
"""

import triton
import triton.language as tl

from kvblend.triton_kernels.attention_kernels import attend_causal, attend_tile, dot, logits_of
from kvblend.triton_kernels.row_kernels import begin_rows, load_rows, part_of_keys, store_rows


@triton.jit(do_not_specialize=["num_context_tokens", "num_queries", "table_stride"])
def probe_attention_kernel(
    q,
    own_keys,
    own_values,
    positions,
    starts,
    context_starts,
    readable,
    keys,
    values,
    block_tables,
    sinks,
    out,  # [PARTS, num_queries, NUM_HEADS, HEAD_DIM]
    lse,  # fp32 [PARTS, num_queries, NUM_HEADS]
    norms,  # fp32 [kv_heads, num_context_tokens]
    num_context_tokens,
    num_queries,
    scale,
    soft_cap,
    q_token_stride,
    q_head_stride,
    own_key_token_stride,
    own_key_head_stride,
    own_value_token_stride,
    own_value_head_stride,
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
    HAS_READABLE: tl.constexpr,
    NORMS: tl.constexpr,
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
    tile = tl.program_id(0) // PARTS
    part = tl.program_id(0) % PARTS
    kv_head = tl.program_id(1).to(tl.int64)
    request = tl.program_id(2).to(tl.int64)
    first_query = tl.load(starts + request)
    length = (tl.load(starts + request + 1) - first_query).to(tl.int32)
    first_context = tl.load(context_starts + request)
    num_keys = (tl.load(context_starts + request + 1) - first_context).to(tl.int32)
    first_token = tile * TOKENS
    if first_token >= length:
        return
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
    first_visible, begin, end = part_of_keys(first_position, num_keys, part, WINDOW, KEYS, PARTS)
    weighted, highest, total = begin_rows(sinks, head, inside, part, HAS_SINKS, ROWS, DIMS)
    keys += kv_head * key_head_stride
    values += kv_head * value_head_stride
    block_table = block_tables + request * table_stride
    readable += first_context
    weighted, highest, total = attend_causal(
        q_tile,
        row_positions,
        keys,
        values,
        block_table,
        readable,
        norms + kv_head * num_context_tokens + first_context,
        tl.where(tile == 0, num_keys, 0),
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
        HAS_READABLE,
        NORMS,
        WINDOW,
        HAS_CAP,
        HEAD_DIM,
        DIMS,
        BLOCK_SIZE,
        KEYS,
    )
    dim = tl.arange(0, DIMS)
    # The question's own keys, which are in no block, are the last part's.
    own_end = tl.where(part == PARTS - 1, tl.minimum(first_token + TOKENS, length), 0)
    own_keys += kv_head * own_key_head_stride
    own_values += kv_head * own_value_head_stride
    for start in tl.range(0, own_end, KEYS, num_stages=1):
        own = start + tl.arange(0, KEYS)
        present = own < own_end
        loaded = present[:, None] & (dim < HEAD_DIM)[None]
        own_positions = tl.load(positions + first_query + own, mask=present, other=0).to(tl.int32)
        at = first_query + own
        k = tl.load(own_keys + (at * own_key_token_stride)[:, None] + dim[None], mask=loaded, other=0.0)
        logits = logits_of(dot(q_tile, tl.trans(k)), scale, soft_cap, HAS_CAP)
        seen = present[None] & (own_positions[None] <= row_positions[:, None])
        if WINDOW > 0:
            seen = seen & (row_positions[:, None] - own_positions[None] < WINDOW)
        logits = tl.where(seen, logits, float("-inf"))
        v = tl.load(own_values + (at * own_value_token_stride)[:, None] + dim[None], mask=loaded, other=0.0)
        weighted, highest, total = attend_tile(logits, v, weighted, highest, total)
    store_rows(out, lse, part, query, head, inside, weighted, highest, total, num_queries, NUM_HEADS, HEAD_DIM, DIMS)
