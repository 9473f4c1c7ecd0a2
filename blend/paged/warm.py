"""Have every kernel of a blend compiled before a blend waits for it."""

from collections.abc import Iterable, Iterator
from sys import maxsize

import torch
from torch import Tensor

from kvblend.blend.paged.caches import PagedCaches
from kvblend.blend.paged.context import PagedContextKV
from kvblend.blend.paged.load import PassageLoad, PlacedPassage
from kvblend.triton_kernels import (
    Codec,
    ProbedContext,
    Queries,
    StagedPassage,
    probe_scores,
    selective_attention,
    write_kv,
)
from kvblend.triton_kernels.tiles import NUMBERS_OF_PARTS, num_splits

__all__ = ["warm"]

ALIGNED_DIMS = 16
"""What Triton compiles a stride by is whether this divides it."""


def warm(caches: PagedCaches, num_heads: int, codecs: Iterable[Codec] = (Codec(),)) -> None:
    """Run on one token, once each, all that a blend over `caches` of a model of `num_heads` query heads may launch.

    The token lies in the null block, which is read, and in which the kernels keep nothing. Passages are taken to be of
    one of `codecs` and, raw, of the caches' dtype, and head_dim a multiple of 8, as it is in every backend of vLLM.
    """
    for codec in codecs:
        _load(caches, codec)
    device = caches.device
    queries = Queries.of([torch.tensor([0])], device=device)
    tables = torch.zeros(1, 1, dtype=torch.int32, device=device)
    slots = torch.zeros(1, dtype=torch.int64, device=device)
    readable = torch.ones(1, dtype=torch.bool, device=device)
    contexts = [ProbedContext.of([1], readable=known, device=device) for known in (None, readable)]
    layers = zip(caches.layers, caches.specs, strict=True)
    kinds = {(cache.layout, *spec.constants().values()): (cache, spec) for cache, spec in layers}
    for cache, spec in kinds.values():
        for q, k, v in _rows(caches, num_heads):
            write_kv(k, v, cache, slots)
            for parts in _numbers_of_parts(caches):
                selective_attention(q, queries, cache, tables, spec, num_parts=parts)
                for context in contexts:
                    probe_scores(q, k, v, queries, cache, tables, context, spec, num_parts=parts)


def _load(caches: PagedCaches, codec: Codec) -> None:
    """That a passage comes through a window changes none of the launches."""
    tables = {group: torch.zeros(1, dtype=torch.int32) for group in caches.block_sizes}
    first = caches.layers[0]
    staged = StagedPassage.empty(
        len(caches.layers),
        1,
        first.num_kv_heads,
        first.head_dim,
        codec=codec,
        dtype=first.keys.dtype,
        device=caches.device,
    )
    PassageLoad([PlacedPassage(staged, PagedContextKV(caches, tables, num_tokens=1), 0, 0)]).all_layers()


def _numbers_of_parts(caches: PagedCaches) -> list[int]:
    """Those that come about: every launch has a program for each KV head, or more."""
    most = num_splits(caches.num_kv_heads, maxsize, caches.layers[0].keys)
    return [parts for parts in NUMBERS_OF_PARTS if parts <= most]


def _rows(caches: PagedCaches, num_heads: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """A token's queries, keys and values, `[1, heads, head_dim]` each, of all strides that models give them.

    They may be views of one projection's result or tensors of their own: keys are where they were turned or normed.
    That shows in what 16 divides only where it does not divide head_dim.
    """
    cache = caches.layers[0]
    heads = [num_heads, cache.num_kv_heads, cache.num_kv_heads]
    projected = torch.zeros(1, sum(heads), cache.head_dim, dtype=cache.keys.dtype, device=caches.device)
    q, k, v = torch.split(projected, heads, dim=1)
    yield q, k, v
    if cache.head_dim % ALIGNED_DIMS:
        own_q, own_k, own_v = (part.clone(memory_format=torch.contiguous_format) for part in (q, k, v))
        yield own_q, own_k, v
        yield own_q, own_k, own_v
