"""What an attention kernel does before and after it goes through keys: its rows, their share of the keys, their merge.

A row is one of a token's heads that share a KV head; the next token's follow.
"""

import triton
import triton.language as tl

from kvblend.triton_kernels.attention_kernels import LOG2E

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_rows(
    q,
    positions,
    first_query,
    first_token,
    length,
    kv_head,
    q_token_stride,
    q_head_stride,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A tile of rows from `first_token` of a request on: (q, positions, query, head, inside), each by row."""
    row = tl.arange(0, ROWS)
    token = first_token + row // GROUP
    inside = (row < ROWS // GROUP * GROUP) & (token < length)
    query = first_query + token
    head = kv_head * GROUP + row % GROUP
    dim = tl.arange(0, DIMS)
    q_tile = tl.load(
        q + (query * q_token_stride + head * q_head_stride)[:, None] + dim[None],
        mask=inside[:, None] & (dim < HEAD_DIM)[None],
        other=0.0,
    )
    row_positions = tl.load(positions + query, mask=inside, other=-1).to(tl.int32)
    return q_tile, row_positions, query, head, inside


@triton.jit
def part_of_keys(first_position, num_keys, part, WINDOW: tl.constexpr, KEYS: tl.constexpr, PARTS: tl.constexpr):
    """(first key that the tile's first row sees, begin and end of this part of those from it to `num_keys`)."""
    first_visible = 0
    if WINDOW > 0:
        first_visible = tl.maximum(first_position + 1 - WINDOW, 0)
    lowest = first_visible // KEYS * KEYS
    keys_per_part = tl.cdiv(tl.cdiv(tl.maximum(num_keys - lowest, 0), KEYS), PARTS) * KEYS
    begin = lowest + part * keys_per_part
    return first_visible, begin, tl.minimum(begin + keys_per_part, num_keys)


@triton.jit
def begin_rows(sinks, head, inside, part, HAS_SINKS: tl.constexpr, ROWS: tl.constexpr, DIMS: tl.constexpr):
    """(weighted values, highest logit, total weight) of rows that saw nothing yet, but the first part's the sinks."""
    weighted = tl.zeros([ROWS, DIMS], tl.float32)
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if HAS_SINKS:
        sink = tl.load(sinks + head, mask=inside, other=0.0) * LOG2E
        highest = tl.where(part == 0, sink, float("-inf"))
        total = tl.where(part == 0, total + 1.0, total)
    return weighted, highest, total


@triton.jit
def store_rows(
    out,
    lse,
    part,
    query,
    head,
    inside,
    weighted,
    highest,
    total,
    num_queries,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
):
    """Write each row's attention and natural log-sum-exp to `[part, query, head]`; -inf and 0 where it saw nothing."""
    dim = tl.arange(0, DIMS)
    row = (part.to(tl.int64) * num_queries + query) * NUM_HEADS + head
    divisor = tl.where(total > 0.0, total, 1.0)
    result = (weighted / divisor[:, None]).to(out.dtype.element_ty)
    tl.store(out + row[:, None] * HEAD_DIM + dim[None], result, mask=inside[:, None] & (dim < HEAD_DIM)[None])
    tl.store(lse + row, tl.where(total > 0.0, (highest + tl.log2(divisor)) * LN2, float("-inf")), mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def merge_parts_kernel(
    part_out,  # fp32 [PARTS, num_rows, HEAD_DIM]
    part_lse,  # fp32 [PARTS, num_rows]
    out,
    lse,
    num_rows,
    PARTS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Attention over all keys from that over each part of them; a row is one head of one query."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < num_rows
    dim = tl.arange(0, DIMS)
    mask = inside[:, None] & (dim < HEAD_DIM)[None]
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    weighted = tl.zeros([ROWS, DIMS], tl.float32)
    for part in range(PARTS):
        at = part * tl.cast(num_rows, tl.int64) + row
        logit = tl.load(part_lse + at, mask=inside, other=float("-inf")) * LOG2E
        numbers = tl.load(part_out + at[:, None] * HEAD_DIM + dim[None], mask=mask, other=0.0)
        new_highest = tl.maximum(highest, logit)
        base = tl.where(new_highest == float("-inf"), 0.0, new_highest)
        weight = tl.exp2(logit - base)
        shrink = tl.exp2(highest - base)
        weighted = weighted * shrink[:, None] + weight[:, None] * numbers
        total = total * shrink + weight
        highest = new_highest
    divisor = tl.where(total > 0.0, total, 1.0)
    tl.store(out + row[:, None] * HEAD_DIM + dim[None], (weighted / divisor[:, None]).to(out.dtype.element_ty), mask)
    tl.store(lse + row, tl.where(total > 0.0, (highest + tl.log2(divisor)) * LN2, float("-inf")), mask=inside)
