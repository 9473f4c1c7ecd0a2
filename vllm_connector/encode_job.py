"""Gather a passage's KV over the engine steps that compute it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kvblend.core.plan import EncodeOrder
from kvblend.vllm_connector.metadata import EncodeTask
from kvblend.vllm_connector.paged_kv import PagedLayer

__all__ = ["EncodeJob"]


class EncodeJob:
    """Passage KV `[layer, k|v, token, kv_head, head_dim]` in the making.

    Read at the end of every step, since layers with a sliding window free their blocks before the prefill ends.
    """

    def __init__(self, order: EncodeOrder, layers: Sequence[PagedLayer]) -> None:
        self._order, self._layers = order, layers
        first, num_tokens = layers[0], order.end - order.start
        shape = (len(layers), 2, num_tokens, first.num_kv_heads, first.head_dim)
        self.kv: Tensor = torch.empty(shape, dtype=first.layer.kv_cache.dtype)
        self._have = torch.zeros(num_tokens, dtype=torch.bool)

    def take(self, task: EncodeTask) -> None:
        """Copy what the step has computed of the passage."""
        start, end = max(self._order.start, task.computed_start), min(self._order.end, task.computed_end)
        if start >= end:
            return
        kept = slice(start - self._order.start, end - self._order.start)
        for index, layer in enumerate(self._layers):
            keys, values = layer.read(task.block_ids[layer.group], start, end)
            self.kv[index, 0, kept] = keys
            self.kv[index, 1, kept] = values
        self._have[kept] = True

    @property
    def complete(self) -> bool:
        return bool(self._have.all())
