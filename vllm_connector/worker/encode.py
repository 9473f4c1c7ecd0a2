"""Gather a passage's KV over the engine steps that compute it."""

import torch

from kvblend.core.plan import EncodeOrder
from kvblend.vllm_connector.engine.caches import EngineCaches
from kvblend.vllm_connector.metadata import EncodeTask

__all__ = ["EncodeJob"]


class EncodeJob:
    """Passage KV `[layer, k|v, token, kv_head, head_dim]` in the making, on the caches' device.

    Read at the end of every step, since layers with a sliding window free their blocks before the prefill ends.
    """

    def __init__(self, order: EncodeOrder, caches: EngineCaches) -> None:
        self._order, self._caches = order, caches
        self.kv = caches.empty(order.end - order.start)
        self._have = torch.zeros(order.end - order.start, dtype=torch.bool)

    def take(self, task: EncodeTask) -> None:
        """Copy what the step has computed of the passage; nothing waits for the device."""
        start, end = max(self._order.start, task.computed_start), min(self._order.end, task.computed_end)
        if start >= end:
            return
        kept = slice(start - self._order.start, end - self._order.start)
        self._caches.read_into(self.kv[:, :, kept], task.block_ids, start, end)
        self._have[kept] = True

    @property
    def complete(self) -> bool:
        return bool(self._have.all())
