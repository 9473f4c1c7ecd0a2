"""Passages that are encoded: gathered over the engine steps that compute them, and written as they become whole."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import torch
from vllm.logger import init_logger

from kvblend.core.identity import prefix_hashes, token_hash
from kvblend.core.plan import EncodeOrder
from kvblend.store import PassageKVKey
from kvblend.vllm_connector.engine.caches import EngineCaches
from kvblend.vllm_connector.log_ids import log_ids
from kvblend.vllm_connector.metadata import EncodeTask
from kvblend.vllm_connector.worker.host_copy import HostCopy
from kvblend.vllm_connector.worker.passage_writer import PassageWriter

__all__ = ["Encode", "Encodes"]

logger = init_logger("vllm.kvblend.encode")


class Encode:
    """The passages of one order in the making, on the caches' device; each takes memory from its first step to its
    last.

    Read at the end of every step, since layers with a sliding window free their blocks before the prefill ends.
    """

    def __init__(self, order: EncodeOrder, caches: EngineCaches) -> None:
        self._caches = caches
        self._waiting = [_Passage(start, end) for start, end in order.spans]

    def take(self, task: EncodeTask) -> list[tuple[tuple[int, int], torch.Tensor]]:
        """Copy what the step has computed; nothing waits for the device.

        Returns each span that is whole now with its KV `[layer, k|v, token, kv_head, head_dim]`.
        """
        whole = []
        for passage in list(self._waiting):
            start, end = max(passage.start, task.computed_start), min(passage.end, task.computed_end)
            if start >= end:
                continue
            if passage.kv is None:
                passage.kv = self._caches.empty(passage.end - passage.start)
            kept = slice(start - passage.start, end - passage.start)
            self._caches.read_into(passage.kv[:, :, kept], task.block_ids, start, end)
            passage.have[kept] = True
            if passage.have.all():
                self._waiting.remove(passage)
                whole.append(((passage.start, passage.end), passage.kv))
        return whole

    @property
    def complete(self) -> bool:
        return not self._waiting


class _Passage:
    """Prompt tokens `[start, end)`; `have` says of each whether its KV is there."""

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end
        self.kv: torch.Tensor | None = None
        self.have = torch.zeros(end - start, dtype=torch.bool)


@dataclass
class _Outcome:
    """Of an order: files that are being written, why it failed if it did, and whether its last step is over."""

    num_writing: int = 0
    failure: str | None = None
    ended: bool = False
    dropped: bool = False


class Encodes:
    """Every order's outcome is told once, with the step that completes its last passage or after it."""

    def __init__(
        self, caches: EngineCaches, writer: PassageWriter, model_fingerprint: str, heads: tuple[int, int]
    ) -> None:
        self._caches, self._writer = caches, writer
        self._fingerprint, self._heads = model_fingerprint, heads
        self._encodes: dict[str, Encode] = {}
        self._outcomes: dict[str, _Outcome] = {}

    def __len__(self) -> int:
        return len(self._encodes)

    def take(self, task: EncodeTask) -> None:
        """Keep what this step computed of an order's passages; have those written that are whole. Raises nothing."""
        outcome = self._outcomes.setdefault(task.request_id, _Outcome())
        if outcome.failure is None:
            try:
                self._take(task, outcome)
            except Exception as error:  # no memory, for one: an encode is only a future miss
                logger.exception(
                    "Passage KV of request %s is not kept", task.request_id, extra=log_ids(task.request_id)
                )
                outcome.failure = f"the passage's KV could not be kept: {error}"
        encode = self._encodes.get(task.request_id)
        if task.computed_end >= task.order.end:
            self._encodes.pop(task.request_id, None)
            outcome.ended = True
            if outcome.failure is None and encode is not None and not encode.complete:
                # a local hit within the passages, whose hashes are salted to have none
                outcome.failure = "a part of a passage was not computed for this request"

    def drop(self, request_id: str) -> None:
        """Forget a request. What it has completed is written all the same."""
        self._encodes.pop(request_id, None)
        outcome = self._outcomes.get(request_id)
        if outcome is not None and not outcome.ended:
            outcome.dropped = True
            if not outcome.num_writing:
                del self._outcomes[request_id]

    def take_results(self) -> dict[str, str | None]:
        """By request id, the orders that have ended since the last call: None where every file is whole, or why one is
        not."""
        for request_id, failure in self._writer.take_results():
            outcome = self._outcomes[request_id]
            outcome.num_writing -= 1
            outcome.failure = outcome.failure or failure
        over = {id: outcome for id, outcome in self._outcomes.items() if not outcome.num_writing}
        results = {}
        for request_id, outcome in over.items():
            if outcome.ended:
                results[request_id] = outcome.failure
            if outcome.ended or outcome.dropped:
                del self._outcomes[request_id]
        return results

    def _take(self, task: EncodeTask, outcome: _Outcome) -> None:
        encode = self._encodes.get(task.request_id)
        if encode is None:
            encode = self._encodes[task.request_id] = Encode(task.order, self._caches)
        whole = encode.take(task)
        keys = self._keys(task.token_ids, [span for span, _ in whole], salt=task.order.salt)
        for ((start, _), kv), key in zip(whole, keys, strict=True):
            self._writer.put(task.request_id, key, HostCopy(kv), capture_position=start, owners=task.order.owners)
            outcome.num_writing += 1

    def _keys(self, token_ids: list[int], spans: Sequence[tuple[int, int]], *, salt: str | None) -> list[PassageKVKey]:
        """Of spans of the prompt in order; every token in front of them is hashed once."""
        bounds = [0, *chain.from_iterable(spans)]
        parts = [token_ids[start:end] for start, end in pairwise(bounds)]
        contexts = list(prefix_hashes(parts, salt=salt))
        return [
            PassageKVKey(self._fingerprint, before, token_hash(own), *self._heads)
            for before, own in zip(contexts[1::2], parts[1::2], strict=True)
        ]
