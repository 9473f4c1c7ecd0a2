"""What brings the passages of a blend into the request's blocks: the store, read by a thread."""

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from vllm.logger import init_logger

from kvblend.core.errors import KVBlendError
from kvblend.store import Deadline, OpenPassageKV, PassageKVKey, TieredStore
from kvblend.store.tier_counts import OpCounts
from kvblend.vllm_connector.engine.caches import EngineCaches
from kvblend.vllm_connector.engine.pages import BlendContext, Pages, PlacedKV
from kvblend.vllm_connector.metadata import BlendTask
from kvblend.vllm_connector.span_keys import PlacedSpan
from kvblend.vllm_connector.timed_step import Facts, TimedSteps
from kvblend.vllm_connector.worker.loading import LoadingController

__all__ = ["Brought", "PassageSource", "Stager"]

logger = init_logger("vllm.kvblend.blend")


@dataclass(frozen=True)
class PassageSource:
    """Where this rank's passage KV is, what it goes by there, and who brings it in."""

    store: TieredStore
    model_fingerprint: str
    heads: tuple[int, int]
    threads: Executor
    deadline_s: float
    """What remote tiers may cost a blend."""
    loading: LoadingController | None = None
    """Which tiers are passed over; None: none is."""


@dataclass(frozen=True)
class Brought:
    """A span's KV, in the request's blocks: from a tier, and which of the span's choices it is."""

    tier: str
    choice: int


@dataclass(frozen=True)
class _Opened:
    span: int
    choice: int
    file: OpenPassageKV


class Stager:
    """Of each span the best that the store has, of the model's shape and dtype, at its place in the context.

    `passed_over`: by place among the spans, the tier that has it and was too slow. `load_ms`: what all of it took. Both
    are there once `bring` has returned.
    """

    def __init__(
        self,
        task: BlendTask,
        caches: EngineCaches,
        pages: Pages,
        spans: Sequence[PlacedSpan],
        num_lost_tokens: int,
        timed_steps: TimedSteps,
    ) -> None:
        self._task, self._caches, self._pages = task, caches, pages
        self._spans, self._num_lost_tokens, self._timed_steps = spans, num_lost_tokens, timed_steps
        self.passed_over: dict[int, str] = {}
        self.load_ms = 0.0

    def bring(self, source: PassageSource, context: BlendContext) -> list[Brought | None]:
        """What there is of each span; None of one that is to be recomputed. For a thread, once."""
        began, began_ns = time.perf_counter(), time.time_ns()
        self._check_hit()
        with torch.inference_mode(), ExitStack() as closing:
            # every file is opened before one is read, so that an eviction meanwhile hurts nothing
            opened = self._open(source, closing)
            placed = [self._placed(own) for own in opened]
            failed = self._pages.bring(context, placed, hit=self._task.start)
            for place, reason in failed.items():
                self._note_lost(reason)
                opened[place].file.quarantine()
            seconds = time.perf_counter() - began
            self.load_ms = seconds * 1e3
            self._timed_steps.part("load", began_ns, self.load_ms)
        if source.loading is not None and not failed:
            num_tokens = Counter[str]()
            for own in opened:
                num_tokens[own.file.tier] += self._spans[own.span].end - self._spans[own.span].start
            source.loading.loaded(num_tokens, seconds)
        brought: list[Brought | None] = [None] * len(self._spans)
        for place, own in enumerate(opened):
            if place not in failed:
                brought[own.span] = Brought(own.file.tier, own.choice)
        return brought

    def _check_hit(self) -> None:
        first = self._spans[0]
        if self._num_lost_tokens > 0 and not (first.is_preamble and self._num_lost_tokens <= first.end):
            raise KVBlendError(
                f"the first {self._num_lost_tokens} tokens of a local hit of {self._task.start} lie in blocks that a "
                "sliding window has given back, and are not all the preamble's"
            )

    def _open(self, source: PassageSource, closing: ExitStack) -> list[_Opened]:
        """The best that the store has of each span, of the model's shape and dtype, until `closing` ends."""
        deadline = Deadline.after(source.deadline_s)
        slow = set[str]() if source.loading is None else source.loading.too_slow()
        opened: dict[int, _Opened] = {}
        for choice in range(max((len(span.choices) for span in self._spans), default=0)):
            keys = {
                place: span.choices[choice].key(source.model_fingerprint, source.heads)
                for place, span in enumerate(self._spans)
                if place not in opened and choice < len(span.choices)
            }
            # a preamble is loaded wherever it lies: it may be what a local hit has lost
            preamble = {key for place, key in keys.items() if slow and self._spans[place].is_preamble}
            wanted = [key for key in dict.fromkeys(keys.values()) if key not in preamble]
            files = dict(source.store.open_many(wanted, deadline, passing_over=slow, fetched=self._note_fetch))
            if preamble:
                files.update(source.store.open_many(preamble, deadline, fetched=self._note_fetch))
            for file in files.values():
                closing.callback(file.close)
            if slow:
                self._note_passed_over(source, {p: key for p, key in keys.items() if key not in files}, deadline, slow)
            for place, key in keys.items():
                if key in files and self._fits(self._spans[place], files[key]):
                    opened[place] = _Opened(place, choice, files[key])
        return [opened[place] for place in sorted(opened)]

    def _note_fetch(self, tier: str, counts: OpCounts) -> None:
        facts: Facts = {"tier": tier, "keys": counts.num_keys, "hits": counts.num_hits, "bytes": counts.num_bytes}
        self._timed_steps.ended("fetch", counts.seconds, facts, within="load")

    def _note_passed_over(
        self, source: PassageSource, missing: dict[int, PassageKVKey], deadline: Deadline, slow: set[str]
    ) -> None:
        """Say what lies in tiers that were passed over, and have it brought nearer for the next request."""
        found = source.store.lookup_many(list(missing.values()), deadline)
        source.store.prefetch(found, slow)
        self.passed_over.update({place: found[key] for place, key in missing.items() if found.get(key) in slow})

    def _fits(self, span: PlacedSpan, file: OpenPassageKV) -> bool:
        expected, header = self._caches.kv_shape(span.num_stored_tokens), file.header
        if header.shape == expected and header.torch_dtype == self._caches.dtype:
            return True
        self._note_lost(f"it is {header.shape} {header.dtype}, {expected} expected")
        return False

    def _placed(self, own: _Opened) -> PlacedKV:
        """Where a passage goes: the span's tokens of it, but for those that the context has."""
        span = self._spans[own.span]
        before, after = span.num_cut
        return PlacedKV(own.file, span.start - before, before + self._skipped(own.span), left_out=after)

    def _skipped(self, index: int) -> int:
        """How many of a span's first tokens the context has from a local hit."""
        span = self._spans[index]
        return 0 if span.start == 0 and self._num_lost_tokens > 0 else max(0, self._task.start - span.start)

    def _note_lost(self, reason: str) -> None:
        logger.warning(
            "Passage KV of request %s is recomputed: %s", self._task.request_id, reason, extra=self._task.log_ids
        )
