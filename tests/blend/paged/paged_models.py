"""Tiny random models made in memory, and their contexts in dense and in paged form."""

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor

from kvblend.blend import DenseContextKV
from kvblend.blend.hf import HuggingFaceModel
from kvblend.blend.paged import PagedCaches, PagedContextKV
from kvblend.triton_kernels import PagedKV
from tests.triton_kernels.paged_samples import block_tables, paged_cache

__all__ = ["MODELS", "make_model", "paged_context", "random_context", "read_paged", "vacant_caches"]

SHAPE: Mapping[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}
MODELS: Mapping[str, Mapping[str, Any]] = {
    "Llama": {},
    "Gemma2": {"sliding_window": 24, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0},
}
LAYOUTS = ("joined", "split", "keys transposed")
GROUPS, BLOCK_SIZES = (0, 1, 0), (16, 32)


def make_model(name: str, dtype: torch.dtype = torch.float32) -> HuggingFaceModel:
    """By a name in MODELS: grouped queries; sliding windows in every other layer and a soft cap."""
    config = getattr(transformers, f"{name}Config")(**SHAPE, **MODELS[name])
    torch.manual_seed(0)
    return HuggingFaceModel(getattr(transformers, f"{name}ForCausalLM")(config).to(dtype))


def vacant_caches(model: HuggingFaceModel, layout: str, num_blocks: int) -> PagedCaches:
    """Caches full of NaN; layer 1 has block tables and a block size of its own."""
    layers: list[PagedKV] = [
        paged_cache(layout, num_blocks, BLOCK_SIZES[group], model.num_kv_heads, model.head_dim, torch.float32)
        for group in GROUPS
    ]
    return PagedCaches.of(layers, model.specs, tables=model.rotary_tables, groups=GROUPS)


def tables_of(lengths: list[int]) -> list[dict[int, Tensor]]:
    """Scattered blocks for each of `lengths`, by group."""
    by_group = {group: block_tables(lengths, size)[0] for group, size in enumerate(BLOCK_SIZES)}
    return [
        {group: table[row][: -(-length // BLOCK_SIZES[group])] for group, table in by_group.items()}
        for row, length in enumerate(lengths)
    ]


def random_context(model: HuggingFaceModel, num_tokens: int, readable: Tensor) -> DenseContextKV:
    """KV that no forward gave."""
    data = torch.randn_like(model.empty_kv(num_tokens))
    return DenseContextKV(model.specs, data, readable)


def paged_context(caches: PagedCaches, dense: DenseContextKV, tables: Mapping[int, Tensor]) -> PagedContextKV:
    """The same context in blocks, NaN where a token is not readable."""
    context = PagedContextKV(caches, tables, num_tokens=len(dense.readable), readable=dense.readable.clone())
    positions = dense.readable.nonzero()[:, 0]
    for index, (cache, group) in enumerate(zip(caches.layers, caches.groups, strict=True)):
        slots = context.slots(group, positions)
        for view, numbers in zip((cache.keys, cache.values), dense.data[index], strict=True):
            view[slots // cache.block_size, slots % cache.block_size] = numbers[positions]
    return context


def read_paged(context: PagedContextKV, num_tokens: int) -> Tensor:
    """A context's KV as a dense one has it, `[layer, k|v, token, kv_head, head_dim]`."""
    positions, layers = torch.arange(num_tokens), []
    for cache, group in zip(context.caches.layers, context.caches.groups, strict=True):
        slots = context.slots(group, positions)
        at = (slots // cache.block_size, slots % cache.block_size)
        layers.append(torch.stack((cache.keys[at], cache.values[at])))
    return torch.stack(layers)
