"""One request's blend in the worker, over as many engine steps as its repair takes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from vllm.logger import init_logger

from kvblend.blend import SELECTORS, ContextKV, Rows
from kvblend.core.errors import KVBlendError
from kvblend.core.report import BlendReport
from kvblend.store import OpenPassageKV, TieredStore
from kvblend.vllm_connector.engine.caches import EngineCaches
from kvblend.vllm_connector.engine.local_hit import num_lost_tokens
from kvblend.vllm_connector.metadata import BlendTask
from kvblend.vllm_connector.span_keys import PlacedSpan, place_spans

__all__ = ["BlendJob", "PassageSource"]

logger = init_logger("vllm.kvblend.blend")

MAX_PROBE_TOKENS = 256
"""A longer question is probed by its last tokens: a bound on the probe's cost."""


class Context(ContextKV, Protocol):
    """A context of which some tokens may be missing: `readable` bool `[token]`, on CPU."""

    readable: Tensor


@dataclass(frozen=True)
class PassageSource:
    """Where this rank's passage KV is, and what it goes by there."""

    store: TieredStore
    model_fingerprint: str
    heads: tuple[int, int]


class BlendJob(ABC):
    """Load, probe, select and repair one request's context; the passes themselves are run by the queue, batched.

    `todo` holds the context positions still to repair, ascending; None until they are selected. `files` are the open
    passage KV of `spans`, None where there is none that can be used. Spans in `lost` are not looked for again.

    Where layers have sliding windows, a local hit may have lost its first tokens: those of the preamble come from the
    store, for what is blended behind the hit to look at; a blend that would need others is not made.
    """

    context: Context
    loads_ahead = False
    """Whether `load` and `settle` may come before a step takes the job up."""

    def __init__(self, task: BlendTask, caches: EngineCaches) -> None:
        self.task, self.caches = task, caches
        self.num_lost_tokens = num_lost_tokens(caches.layers, task.block_ids, task.start)
        self.spans = [
            span
            for span in place_spans(task.plan, task.token_ids)
            if span.end > task.start or (span.start == 0 and self.num_lost_tokens > 0)
        ]
        self.files: list[OpenPassageKV | None] = []
        self.lost: set[int] = set()
        self.num_tokens = task.plan.num_tokens
        self.token_ids = torch.tensor(task.token_ids)
        self.selector = SELECTORS[task.plan.selector]
        self.todo: Tensor | None = None
        self.report = BlendReport(
            outcome="blended",
            prompt_tokens=len(task.token_ids),
            context_tokens=self.num_tokens,
            recompute_ratio=task.plan.recompute_ratio,
            selector=task.plan.selector,
        )

    @property
    def expected_cost(self) -> int:
        """About how many tokens this blend will put through the model, before it is loaded."""
        reused = sum(self._fills(span)[1] for span in self.spans if span.stored_as is not None)
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

    def reserve(self) -> bool:
        """Take what memory the context needs beside the request's blocks; False where it must wait for another's."""
        return True

    @abstractmethod
    def load(self, source: PassageSource) -> list[bool]:
        """Make the context, with the local hit in it, and bring in or begin to bring in every span's KV.

        Returns which spans are there. Every file is opened before one is read, so that an eviction meanwhile hurts
        nothing.
        """

    @abstractmethod
    def finish(self) -> None:
        """See that the whole blended context is in the request's blocks."""

    def close(self) -> None:
        """Let go of files and of what was reserved. Idempotent."""
        for file in self.files:
            if file is not None:
                file.close()

    def skipped(self, span: PlacedSpan) -> int:
        """How many of a span's first tokens the context has from a local hit."""
        return 0 if span.start == 0 and self.num_lost_tokens > 0 else max(0, self.task.start - span.start)

    def open_files(self, source: PassageSource) -> None:
        """Open what the store has of every span, of the model's shape and dtype.

        Raises KVBlendError where a local hit lacks what no span can bring back.
        """
        first = self.spans[0]
        if self.num_lost_tokens > 0 and not (first.exact and self.num_lost_tokens <= first.end):
            raise KVBlendError(
                f"the first {self.num_lost_tokens} tokens of a local hit of {self.task.start} lie in blocks that a "
                "sliding window has given back, and are not all the preamble's"
            )
        self.files = [
            None
            if span.stored_as is None or index in self.lost
            else source.store.open(span.key(source.model_fingerprint, source.heads))
            for index, span in enumerate(self.spans)
        ]
        for index, (file, span) in enumerate(zip(self.files, self.spans, strict=True)):
            if file is None:
                continue
            expected = self.caches.kv_shape(span.end - span.start)
            if file.header.shape != expected or file.header.torch_dtype != self.caches.dtype:
                self.note_lost(index, f"it is {file.header.shape} {file.header.dtype}, {expected} expected")
                file.close()
                self.files[index] = None

    def note_lost(self, index: int, reason: object) -> None:
        """A span's KV cannot be used after all: it will be recomputed."""
        self.lost.add(index)
        logger.warning("Passage KV of request %s is recomputed: %s", self.task.request_id, reason)

    def settle(self, loaded: Sequence[bool]) -> None:
        """Take up which spans every rank has: the others are repaired in full."""
        report = self.report
        report.exact_tokens, report.reused_tokens, report.missed_passages, report.tiers = self.task.start, 0, 0, {}
        self.context.readable[: self.task.start] = True
        self._must_repair = torch.zeros(self.num_tokens, dtype=torch.bool)
        self._candidates = torch.zeros(self.num_tokens, dtype=torch.bool)
        for index, (span, there) in enumerate(zip(self.spans, loaded, strict=True)):
            file = self.files[index]
            tokens, count = self._fills(span)
            if not there:
                if self.num_lost_tokens > span.start:
                    raise KVBlendError("a local hit has lost tokens of the preamble, whose KV is not in the store")
                if file is not None:
                    file.close()
                    self.files[index] = None
                self._must_repair[tokens] = True
                report.missed_passages += span.stored_as is not None and span.start > 0
                continue
            assert file is not None
            self.context.readable[tokens] = True
            if span.start > 0 or not span.exact:
                report.tiers[file.tier] = report.tiers.get(file.tier, 0) + count
            if span.exact:
                report.exact_tokens += count
            else:
                self._candidates[tokens] = True
                report.reused_tokens += count

    def _fills(self, span: PlacedSpan) -> tuple[slice, int]:
        """The tokens of a span that are behind the local hit, and how many they are."""
        tokens = slice(max(span.start, self.task.start), max(span.end, self.task.start))
        return tokens, tokens.stop - tokens.start

    def question_rows(self) -> Rows:
        start = len(self.task.token_ids) - self.num_question_tokens
        return Rows(self.context, self.token_ids[start:], torch.arange(start, len(self.task.token_ids)))

    def select(self, scores: Tensor | None) -> None:
        """Choose what to repair; `scores` are on CPU."""
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
