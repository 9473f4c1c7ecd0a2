"""Passages that are encoded: gathered over the engine steps that compute them, and written."""

import torch
from vllm.logger import init_logger

from kvblend.core.identity import token_hash
from kvblend.core.plan import EncodeOrder
from kvblend.store import PassageKVKey
from kvblend.vllm_connector.engine.caches import EngineCaches
from kvblend.vllm_connector.metadata import EncodeTask
from kvblend.vllm_connector.worker.host_copy import HostCopy
from kvblend.vllm_connector.worker.passage_writer import PassageWriter

__all__ = ["Encode", "Encodes"]

logger = init_logger("vllm.kvblend.encode")


class Encode:
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


class Encodes:
    """Every order's outcome is told once, with the step that completes its passage or after it."""

    def __init__(
        self, caches: EngineCaches, writer: PassageWriter, model_fingerprint: str, heads: tuple[int, int]
    ) -> None:
        self._caches, self._writer = caches, writer
        self._fingerprint, self._heads = model_fingerprint, heads
        self._encodes: dict[str, Encode | str] = {}
        """By request, or why it comes to nothing."""

    def __len__(self) -> int:
        return len(self._encodes)

    def take(self, task: EncodeTask) -> None:
        """Keep what this step computed of a passage; have it written when it is whole. Raises nothing."""
        try:
            self._take(task)
        except Exception as error:  # no memory, for one: an encode is only a future miss
            logger.exception("Passage KV of request %s is not kept", task.request_id)
            self._encodes[task.request_id] = f"the passage's KV could not be kept: {error}"
        if task.computed_end >= task.order.end:
            encode = self._encodes.pop(task.request_id, None)
            if isinstance(encode, str):
                self._writer.fail(task.request_id, encode)

    def drop(self, request_id: str) -> None:
        self._encodes.pop(request_id, None)

    def _take(self, task: EncodeTask) -> None:
        encode = self._encodes.get(task.request_id)
        if isinstance(encode, str):
            return
        if encode is None:
            encode = self._encodes[task.request_id] = Encode(task.order, self._caches)
        encode.take(task)
        if task.computed_end < task.order.end:
            return
        if not encode.complete:  # a local hit within the passage, whose hashes are salted to have none
            self._encodes[task.request_id] = "a part of the passage was not computed for this request"
            return
        order, kv = task.order, HostCopy(encode.kv)
        self._writer.put(task.request_id, self._key(task), kv, capture_position=order.start, owners=order.owners)

    def _key(self, task: EncodeTask) -> PassageKVKey:
        order = task.order
        return PassageKVKey(
            self._fingerprint,
            token_hash(task.token_ids[: order.start]),
            token_hash(task.token_ids[order.start : order.end]),
            *self._heads,
        )
