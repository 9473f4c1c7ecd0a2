"""A prompt of reused passages and a question, and the paged caches that it is blended in."""

import torch

from kvblend.blend.benchmark.flash import encode
from kvblend.blend.hf import HuggingFaceModel
from kvblend.blend.paged import PagedCaches, PagedContextKV
from kvblend.triton_kernels import PagedKV, StagedPassage

__all__ = ["QUESTION_TOKENS", "Workload"]

BLOCK_SIZE, QUESTION_TOKENS = 16, 32


class Workload:
    """Random tokens, in passages of equal length, each encoded for itself; blocks lie scattered.

    `passages` are raw and in device memory; passage i goes to tokens from `i * passage_tokens` on.
    """

    def __init__(self, model: HuggingFaceModel, num_context: int, *, passage_tokens: int) -> None:
        device, num_tokens = model.device, num_context + QUESTION_TOKENS
        self.model, self.num_context, self.passage_tokens = model, num_context, passage_tokens
        self.token_ids = torch.randint(model.config.vocab_size, (num_tokens,), device=device)
        self.positions = torch.arange(num_tokens, device=device)
        num_blocks = -(-num_tokens // BLOCK_SIZE)
        shape = (num_blocks + 1, model.num_kv_heads, BLOCK_SIZE, 2 * model.head_dim)
        layers = [
            PagedKV.from_joined(torch.zeros(shape, dtype=model.dtype, device=device)) for _ in range(model.num_layers)
        ]
        self.caches = PagedCaches.of(layers, model.specs, tables=model.rotary_tables)
        self.context = PagedContextKV(self.caches, {0: torch.randperm(num_blocks) + 1}, num_tokens=num_context)
        self.passages = [self._encoded(start) for start in range(0, num_context, passage_tokens)]

    def _encoded(self, start: int) -> StagedPassage:
        kv = encode(self.model, self.token_ids[start : min(start + self.passage_tokens, self.num_context)])
        return StagedPassage.raw(kv)
