"""One request's blend in the worker, over as many engine steps as its repair takes."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor
from vllm.logger import init_logger

from kvblend.blend import SELECTORS, DenseContextKV, Rows
from kvblend.core.errors import CorruptPassageKVError
from kvblend.core.report import BlendReport
from kvblend.store import OpenPassageKV, TieredStore
from kvblend.vllm_connector.engine_model import EngineModel
from kvblend.vllm_connector.metadata import BlendTask
from kvblend.vllm_connector.paged_kv import PagedLayer
from kvblend.vllm_connector.span_keys import PlacedSpan, place_spans

__all__ = ["BlendJob"]

logger = init_logger("vllm.kvblend.blend")

MAX_PROBE_TOKENS = 256
"""A longer question is probed by its last tokens: a bound on the probe's cost."""


class BlendJob:
    """Load, probe, select and repair one request's context; the passes themselves are run by the worker half, batched.

    `todo` holds the context positions still to repair, ascending; None until they are selected.
    """

    def __init__(self, task: BlendTask, layers: Sequence[PagedLayer], model: EngineModel) -> None:
        self.task, self._layers, self._model = task, layers, model
        self.spans = [span for span in place_spans(task.plan, task.token_ids) if span.end > task.start]
        self.num_tokens = task.plan.num_tokens
        self.token_ids = torch.tensor(task.token_ids)
        self.selector = SELECTORS[task.plan.selector]
        self.todo: Tensor | None = None
        self.report = BlendReport(
            outcome="blended",
            prompt_tokens=len(task.token_ids),
            context_tokens=self.num_tokens,
            exact_tokens=task.start,
            recompute_ratio=task.plan.recompute_ratio,
            selector=task.plan.selector,
        )

    @property
    def expected_cost(self) -> int:
        """About how many tokens this blend will put through the model, before it is loaded."""
        reused = sum(span.end - max(span.start, self.task.start) for span in self.spans if span.stored_as is not None)
        fresh = self.num_tokens - self.task.start - reused
        selected = self.selector.count(reused, recompute_ratio=self.task.plan.recompute_ratio)
        return fresh + selected + (self.num_question_tokens if self.needs_probe else 0)

    @property
    def needs_probe(self) -> bool:
        ratio = self.task.plan.recompute_ratio
        return self.selector.needs_scores and 0.0 < ratio < 1.0

    @property
    def num_question_tokens(self) -> int:
        return min(MAX_PROBE_TOKENS, len(self.task.token_ids) - self.num_tokens)

    def load(self, store: TieredStore, model_fingerprint: str, heads: tuple[int, int]) -> list[bool]:
        """Bring in the local hit and every span's KV at its new position; returns which spans are there.

        Every file is opened before one is read, so that an eviction meanwhile hurts nothing.
        """
        began = time.perf_counter()
        first = self._layers[0]
        shape = (len(self._layers), 2, self.num_tokens, first.num_kv_heads, first.head_dim)
        data = torch.zeros(shape, dtype=first.layer.kv_cache.dtype, device=first.layer.kv_cache.device)
        readable = torch.zeros(self.num_tokens, dtype=torch.bool)
        self.context = DenseContextKV(self._model.specs, data, readable)
        for index, layer in enumerate(self._layers):
            if self.task.start:
                keys, values = layer.read(self.task.block_ids[layer.group], 0, self.task.start)
                data[index, 0, : self.task.start], data[index, 1, : self.task.start] = keys, values
        readable[: self.task.start] = True
        files = [
            store.open(span.key(model_fingerprint, heads)) if span.stored_as is not None else None
            for span in self.spans
        ]
        loaded = [
            file is not None and self._read(file, span, store) for file, span in zip(files, self.spans, strict=True)
        ]
        self.report.steps_ms.load += (time.perf_counter() - began) * 1e3
        return loaded

    def _read(self, file: OpenPassageKV, span: PlacedSpan, store: TieredStore) -> bool:
        with file:
            try:
                kv = file.read()
            except (CorruptPassageKVError, OSError) as error:
                logger.warning("Passage KV of request %s is recomputed: %s", self.task.request_id, error)
                store.quarantine(file)
                return False
            expected = (len(self._layers), 2, span.end - span.start, *self.context.data.shape[3:])
            if tuple(kv.shape) != expected or kv.dtype != self.context.data.dtype:
                logger.warning(
                    "Passage KV of request %s is recomputed: shape %s, %s expected",
                    self.task.request_id,
                    kv.shape,
                    expected,
                )
                return False
            self._model.rerotate(kv, delta=span.start - file.header.capture_position)
            skipped = max(0, self.task.start - span.start)
            self.context.data[:, :, span.start + skipped : span.end] = kv[:, :, skipped:]
            if span.start > 0 or not span.exact:
                tiers = self.report.tiers
                tiers[file.tier] = tiers.get(file.tier, 0) + span.end - span.start - skipped
            return True

    def settle(self, loaded: Sequence[bool]) -> None:
        """Take up which spans every rank has: the others are repaired in full."""
        self._must_repair = torch.zeros(self.num_tokens, dtype=torch.bool)
        self._candidates = torch.zeros(self.num_tokens, dtype=torch.bool)
        for span, there in zip(self.spans, loaded, strict=True):
            tokens = slice(max(span.start, self.task.start), span.end)
            count = tokens.stop - tokens.start
            if not there:
                self._must_repair[tokens] = True
                self.report.missed_passages += span.stored_as is not None and span.start > 0
                continue
            self.context.readable[tokens] = True
            if span.exact:
                self.report.exact_tokens += count
            else:
                self._candidates[tokens] = True
                self.report.reused_tokens += count

    def question_rows(self) -> Rows:
        start = len(self.task.token_ids) - self.num_question_tokens
        return Rows(self.context, self.token_ids[start:], torch.arange(start, len(self.task.token_ids)))

    def select(self, scores: Tensor | None) -> None:
        candidates = self._candidates.nonzero()[:, 0]
        ratio = self.task.plan.recompute_ratio
        if self.selector.needs_scores and scores is None:
            selected = candidates if ratio == 1.0 else candidates[:0]
        else:
            selected = self.selector.select(candidates, recompute_ratio=ratio, scores=scores)
        chosen = self._must_repair.clone()
        chosen[selected] = True
        self.todo = chosen.nonzero()[:, 0]
        self.report.selected_tokens = len(selected)
        self.report.recomputed_tokens = len(self.todo)

    def take_rows(self, room: int) -> Rows:
        """The next tokens to repair, at most `room`."""
        assert self.todo is not None
        positions, self.todo = self.todo[:room], self.todo[room:]
        return Rows(self.context, self.token_ids[positions], positions)

    def write(self) -> None:
        """Put the blended context into the request's blocks."""
        for index, layer in enumerate(self._layers):
            keys, values = self.context.data[index, :, self.task.start :]
            layer.write(self.task.block_ids[layer.group], self.task.start, keys, values)
