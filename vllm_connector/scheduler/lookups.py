"""What the store has of a plan's spans, found out beside vLLM's scheduler."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from kvblend.core.control import KVName
from kvblend.store import Deadline, PassageKVKey, TieredStore
from kvblend.vllm_connector.span_keys import Choice, PlacedSpan

__all__ = ["Found", "Lookups"]

NUM_THREADS = 4
"""A lookup is a `stat` a file, which a disk may let wait, or a question to a remote tier."""


@dataclass(frozen=True)
class Found:
    """`end`: where the last stored passage ends, 0 where none is stored. What lies behind is vLLM's to prefill.

    `reused` and `fresh` count the tokens up to there that are stored and that are not, the preamble's aside; `missed`
    the passages that are not stored, `missed_behind` those of them behind `end`. `recompute_ratio` is the mean over
    the reused tokens, by the best variant that is stored of each passage.
    """

    end: int
    reused: int
    fresh: int
    missed: int
    missed_behind: int
    recompute_ratio: float = 0.0


class Lookups:
    """Looks for every rank's files; a passage is stored where all are."""

    def __init__(
        self, store: TieredStore, model_fingerprint: str, heads: Sequence[tuple[int, int]], *, deadline_s: float
    ) -> None:
        self.store, self._fingerprint, self._heads = store, model_fingerprint, heads
        self._deadline_s = deadline_s
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="kvblend-lookup")

    def begin(self, spans: Sequence[PlacedSpan]) -> Future[Found]:
        return self._threads.submit(self._find, spans)

    def held(self, names: Sequence[KVName]) -> Future[list[bool]]:
        """Of which passage KV, by encode context and passage id, every rank's files lie in tiers of this host."""

        def find() -> list[bool]:
            keys = [[PassageKVKey(self._fingerprint, *name, *heads) for heads in self._heads] for name in names]
            there = self.store.held_many([key for own in keys for key in own])
            return [there >= set(own) for own in keys]

        return self._threads.submit(find)

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        self.store.close()

    def _find(self, spans: Sequence[PlacedSpan]) -> Found:
        passages = [span for span in spans if not span.is_preamble]
        stored = self._stored(passages)
        end = max((span.end for span in stored), default=0)
        reused = sum(span.end - span.start for span in stored)
        selected = sum((span.end - span.start) * choice.recompute_ratio for span, choice in stored.items())
        inside = sum(span.end - span.start for span in passages if span.end <= end)
        missed = [span for span in passages if span.choices and span not in stored]
        return Found(
            end,
            reused,
            inside - reused,
            len(missed),
            sum(span.start >= end for span in missed),
            selected / max(1, reused),
        )

    def _stored(self, spans: Sequence[PlacedSpan]) -> dict[PlacedSpan, Choice]:
        """Those of which the store has a variant that would do, for every rank, and the best that it has."""
        keys = [self._keys(choice) for span in spans for choice in span.choices]
        found = self.store.lookup_many([key for own in keys for key in own], Deadline.after(self._deadline_s))
        self.store.prefetch(found)
        there = {span: [choice for choice in span.choices if found.keys() >= set(self._keys(choice))] for span in spans}
        return {span: choices[0] for span, choices in there.items() if choices}

    def _keys(self, choice: Choice) -> list[PassageKVKey]:
        return [choice.key(self._fingerprint, heads) for heads in self._heads]
