"""Second pass of a probe: what each context token gave the question.

For each tile of context keys, logits again, weights by the first pass's log-sum-exp, summed over queries, times the
values' norms, which the first pass left.
"""

import triton
import triton.language as tl

from kvblend.triton_kernels.attention_kernels import LOG2E, dot, logits_of


@triton.jit(do_not_specialize=["num_context_tokens", "table_stride"])
def column_scores_kernel(
    q,
    lse,  # fp32 [num_queries, NUM_HEADS]
    norms,  # fp32 [kv_heads, num_context_tokens]
    positions,
    starts,
    context_starts,
    readable,
    keys,
    block_tables,
    scores,  # fp32 [kv_heads, num_context_tokens], added to
    num_context_tokens,
    scale,
    soft_cap,
    q_token_stride,
    q_head_stride,
    table_stride,
    key_block_stride,
    key_token_stride,
    key_head_stride,
    key_dim_stride,
    WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_READABLE: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    tile = tl.program_id(0)
    kv_head = tl.program_id(1).to(tl.int64)
    request = tl.program_id(2).to(tl.int64)
    first_context = tl.load(context_starts + request)
    num_keys = (tl.load(context_starts + request + 1) - first_context).to(tl.int32)
    first_query = tl.load(starts + request)
    length = (tl.load(starts + request + 1) - first_query).to(tl.int32)
    if (tile * KEYS >= num_keys) | (length == 0):
        return
    key = tile * KEYS + tl.arange(0, KEYS)
    present = key < num_keys
    if WINDOW > 0:
        present = present & (key > tl.load(positions + first_query).to(tl.int32) - WINDOW)
    if HAS_READABLE:
        present = present & (tl.load(readable + first_context + key, mask=present, other=0) != 0)
    block = tl.load(block_tables + request * table_stride + key // BLOCK_SIZE, mask=present, other=0).to(tl.int64)
    dim = tl.arange(0, DIMS)
    loaded = present[:, None] & (dim < HEAD_DIM)[None]
    key_row = block * key_block_stride + (key % BLOCK_SIZE) * key_token_stride + kv_head * key_head_stride
    k = tl.load(keys + key_row[:, None] + dim[None] * key_dim_stride, mask=loaded, other=0.0)
    received = tl.zeros([KEYS], tl.float32)
    for start in tl.range(0, length * GROUP, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = row < length * GROUP
        query = first_query + row // GROUP
        head = kv_head * GROUP + row % GROUP
        q_tile = tl.load(
            q + (query * q_token_stride + head * q_head_stride)[:, None] + dim[None],
            mask=inside[:, None] & (dim < HEAD_DIM)[None],
            other=0.0,
        )
        row_lse = tl.load(lse + query * NUM_HEADS + head, mask=inside, other=float("inf")) * LOG2E
        row_positions = tl.load(positions + query, mask=inside, other=-1).to(tl.int32)
        # Keys are the rows of this product, so that a key's weights are summed within a warp.
        logits = logits_of(dot(k, tl.trans(q_tile)), scale, soft_cap, HAS_CAP)
        seen = present[:, None] & (key[:, None] <= row_positions[None])
        if WINDOW > 0:
            seen = seen & (row_positions[None] - key[:, None] < WINDOW)
        received += tl.sum(tl.where(seen, tl.exp2(logits - row_lse[None]), 0.0), 1)
    column = kv_head * num_context_tokens + first_context + key
    given = received * tl.load(norms + column, mask=present, other=0.0) / GROUP
    at = scores + column
    tl.store(at, tl.load(at, mask=present, other=0.0) + given, mask=present)
