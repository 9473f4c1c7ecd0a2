"""The attention kernels: a repair's queries among all positions, and a question's."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from kvblend.triton_kernels import probe_scores, selective_attention
from kvblend.triton_kernels.attention_spec import AttentionSpec
from kvblend.triton_kernels.benchmark.result import (
    HEAD_DIM,
    NUM_HEADS,
    NUM_KV_HEADS,
    KernelResult,
    checked_error,
    random_cache,
    timed,
    times,
)
from kvblend.triton_kernels.probe_scores import ProbedContext, probe_scores_reference
from kvblend.triton_kernels.queries import Queries
from kvblend.triton_kernels.selective_attention.reference import selective_attention_reference

__all__ = ["attention"]

SELECTED_SHARE, QUESTION_TOKENS, CHECKED_QUERIES = 0.15, 32, 64
SPEC = AttentionSpec(HEAD_DIM**-0.5)


def attention(length: int, device: torch.device) -> Iterator[KernelResult]:
    """selective_attention of some tokens of a context of `length`, beside SDPA with a mask; probe_scores behind it."""
    cache = random_cache(length + QUESTION_TOKENS, device)
    num_blocks = cache.keys.shape[0] - 1
    tables = (torch.randperm(num_blocks, device=device) + 1).int()[None]
    positions = torch.randperm(length)[: int(length * SELECTED_SHARE)].sort().values
    queries = Queries.of([positions], device=device)
    q = torch.randn(len(positions), NUM_HEADS, HEAD_DIM, dtype=torch.bfloat16, device=device)
    shape = f"{len(positions)} of {length} tokens, {NUM_HEADS} heads of {HEAD_DIM} on {NUM_KV_HEADS} KV heads"

    def attend() -> Tensor:
        return selective_attention(q, queries, cache, tables, SPEC)

    some = torch.arange(0, len(positions), -(-len(positions) // CHECKED_QUERIES))
    checked = Queries.of([positions[some]], device=device)
    some = some.to(device)
    expected, _ = selective_attention_reference(q[some], checked, cache, tables, SPEC)
    error = checked_error(attend()[some], expected, 0.02)
    floor = None
    if device.type == "cuda":
        products = 4 * HEAD_DIM * NUM_HEADS * float((positions + 1).sum())
        floor = products / _flash_products_per_ms(length, device)
        yield timed(
            "sdpa_explicit_mask", shape, "bf16", _masked_sdpa(q, positions, length, device), floor, None, device
        )
    yield timed("selective_attention", shape, "bf16", attend, floor, error, device)

    asked = Queries.of([torch.arange(length, length + QUESTION_TOKENS)], device=device)
    own = (QUESTION_TOKENS, NUM_KV_HEADS, HEAD_DIM)
    own_keys, own_values = torch.randn(2, *own, dtype=torch.bfloat16, device=device)
    question, context = q[:QUESTION_TOKENS], ProbedContext.of([length], device=device)

    def probe() -> tuple[Tensor, Tensor]:
        return probe_scores(question, own_keys, own_values, asked, cache, tables, context, SPEC)

    out, scores = probe()
    expected_scores = torch.zeros_like(scores)
    arguments = (question, own_keys, own_values, asked, cache, tables, context, SPEC, expected_scores)
    error = max(
        checked_error(out, probe_scores_reference(*arguments), 0.02), checked_error(scores, expected_scores, 0.05)
    )
    floor = None
    if device.type == "cuda":
        floor = times(lambda: selective_attention(question, asked, cache, tables, SPEC), device)[1]
    shape = f"{len(question)} question tokens on {length}, {NUM_HEADS} heads of {HEAD_DIM} on {NUM_KV_HEADS} KV heads"
    yield timed("probe_scores", shape, "bf16", probe, floor, error, device)


def _dense(length: int, num_heads: int, device: torch.device) -> Tensor:
    return torch.randn(1, num_heads, length, HEAD_DIM, dtype=torch.bfloat16, device=device)


def _flash_products_per_ms(length: int, device: torch.device) -> float:
    """What flash attention does on a dense causal prefill of the same length and heads."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = (_dense(length, NUM_HEADS, device) for _ in range(3))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        taken = times(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True), device)[1]
    return 4 * HEAD_DIM * NUM_HEADS * length * (length + 1) / 2 / taken


def _masked_sdpa(q: Tensor, positions: Tensor, length: int, device: torch.device) -> Callable[[], Tensor]:
    """PyTorch's attention for the same queries with a mask over all keys."""
    queries = q.transpose(0, 1)[None]
    keys, values = _dense(length, NUM_HEADS, device), _dense(length, NUM_HEADS, device)
    mask = torch.arange(length, device=device)[None] <= positions.to(device)[:, None]
    return lambda: F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
