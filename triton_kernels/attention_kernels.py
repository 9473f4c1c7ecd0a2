"""Flash attention over paged keys, inside a kernel.

Rows are queries: a token's heads that share a KV head, then the next token's. Logits are kept in base 2 (times log2 e).
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
# Triton's interpreter multiplies the bit patterns of bf16 tiles; in fp32 their products are what a GPU computes.
WIDEN_BF16 = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def logits_of(products, scale, soft_cap, HAS_CAP: tl.constexpr):
    """Base-2 logits of fp32 products of queries and keys."""
    if HAS_CAP:
        # tanh(x) = 1 - 2 / (e^2x + 1), which is right at both infinities.
        doubled = products * (scale / soft_cap * 2.0 * LOG2E)
        return (1.0 - 2.0 / (tl.exp2(doubled) + 1.0)) * (soft_cap * LOG2E)
    return products * (scale * LOG2E)


@triton.jit
def dot(a, b):
    """fp32 product of two tiles; fp32 ones are not rounded to TF32."""
    if WIDEN_BF16 and a.dtype == tl.bfloat16:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    if a.dtype == tl.float32:
        return tl.dot(a, b, input_precision="ieee")
    return tl.dot(a, b)


@triton.jit
def attend_tile(logits, values, weighted, highest, total):
    """Fold one tile of keys into the running (weighted values, highest logit, total weight) of each row."""
    new_highest = tl.maximum(highest, tl.max(logits, 1))
    base = tl.where(new_highest == float("-inf"), 0.0, new_highest)
    weights = tl.exp2(logits - base[:, None])
    shrink = tl.exp2(highest - base)
    total = total * shrink + tl.sum(weights, 1)
    weighted = weighted * shrink[:, None] + dot(weights.to(values.dtype), values)
    return weighted, new_highest, total


@triton.jit
def norms_of(values, NORMS: tl.constexpr, KEYS: tl.constexpr):
    """Norm of each row of a tile `[KEYS, DIMS]`, fp32.

    NORMS "products": as a product, for which the tile stays in shared memory, so that on sm_90 its loads go on being
    issued ahead. "sums": in registers, of which an sm_80 has none left for the product.
    """
    if NORMS == "products":
        own = tl.arange(0, KEYS)[:, None] == tl.arange(0, KEYS)[None]
        return tl.sqrt(tl.sum(tl.where(own, dot(values, tl.trans(values)), 0.0), 1))
    numbers = values.to(tl.float32)
    return tl.sqrt(tl.sum(numbers * numbers, 1))


@triton.jit
def attend_paged(
    q,  # [ROWS, DIMS]
    row_positions,  # int32 [ROWS], -1 where there is no query
    keys,
    values,
    block_table,
    readable,
    norms,
    norms_end,
    begin,
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
    MASKED: tl.constexpr,
    HAS_READABLE: tl.constexpr,
    NORMS: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Attend to keys `[begin, end)`, of which those below `first_visible` or from `num_keys` on are never read.

    Unless MASKED, every row sees every one of them. NORMS (see norms_of): those of values below
    `norms_end` go to `norms`."""
    dim = tl.arange(0, DIMS)
    for start in tl.range(begin, end, KEYS):
        key = start + tl.arange(0, KEYS)
        if MASKED:
            present = (key >= first_visible) & (key < num_keys)
            if HAS_READABLE:
                present = present & (tl.load(readable + key, mask=present, other=0) != 0)
            block = tl.load(block_table + key // BLOCK_SIZE, mask=present, other=0).to(tl.int64)
            loaded = present[:, None] & (dim < HEAD_DIM)[None]
        else:
            block = tl.load(block_table + key // BLOCK_SIZE).to(tl.int64)
            loaded = (dim < HEAD_DIM)[None] & (key >= 0)[:, None]
        token = key % BLOCK_SIZE
        key_row = block * key_block_stride + token * key_token_stride
        value_row = block * value_block_stride + token * value_token_stride
        if MASKED or DIMS > HEAD_DIM:
            k = tl.load(keys + key_row[:, None] + dim[None] * key_dim_stride, mask=loaded, other=0.0)
        else:
            k = tl.load(keys + key_row[:, None] + dim[None] * key_dim_stride)
        logits = logits_of(dot(q, tl.trans(k)), scale, soft_cap, HAS_CAP)
        if MASKED:
            seen = present[None] & (key[None] <= row_positions[:, None])
            if WINDOW > 0:
                seen = seen & (row_positions[:, None] - key[None] < WINDOW)
            logits = tl.where(seen, logits, float("-inf"))
        if MASKED or DIMS > HEAD_DIM:
            v = tl.load(values + value_row[:, None] + dim[None] * value_dim_stride, mask=loaded, other=0.0)
        else:
            v = tl.load(values + value_row[:, None] + dim[None] * value_dim_stride)
        if NORMS != "":
            kept = key < norms_end
            if MASKED:
                kept = kept & present
            tl.store(norms + key, norms_of(v, NORMS, KEYS), mask=kept)
        weighted, highest, total = attend_tile(logits, v, weighted, highest, total)
    return weighted, highest, total


@triton.jit
def attend_causal(
    q,
    row_positions,
    keys,
    values,
    block_table,
    readable,
    norms,
    norms_end,
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
    HAS_READABLE: tl.constexpr,
    NORMS: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Attend to keys `[begin, end)`: without masks to the whole tiles up to `first_position`, which every row sees."""
    middle = begin
    if WINDOW == 0 and not HAS_READABLE:
        middle = tl.maximum(begin, tl.minimum(end, tl.minimum(num_keys, first_position + 1) // KEYS * KEYS))
        weighted, highest, total = attend_paged(
            q,
            row_positions,
            keys,
            values,
            block_table,
            readable,
            norms,
            norms_end,
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
            NORMS,
            WINDOW,
            HAS_CAP,
            HEAD_DIM,
            DIMS,
            BLOCK_SIZE,
            KEYS,
        )
    weighted, highest, total = attend_paged(
        q,
        row_positions,
        keys,
        values,
        block_table,
        readable,
        norms,
        norms_end,
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
        HAS_READABLE,
        NORMS,
        WINDOW,
        HAS_CAP,
        HEAD_DIM,
        DIMS,
        BLOCK_SIZE,
        KEYS,
    )
    return weighted, highest, total
