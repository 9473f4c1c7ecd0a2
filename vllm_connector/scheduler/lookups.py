"""What the store has of a plan's spans, found out beside vLLM's scheduler."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from kvblend.store import TieredStore
from kvblend.vllm_connector.span_keys import PlacedSpan

__all__ = ["Found", "Lookups"]

NUM_THREADS = 4
"""A lookup is a `stat` a file, which a disk may let wait."""


@dataclass(frozen=True)
class Found:
    """`end`: where the last stored passage ends, 0 where none is stored. What lies behind is vLLM's to prefill.

    `reused` and `fresh` count the tokens up to there that are stored and that are not, the preamble's aside; `missed`
    the passages that are not stored, `missed_behind` those of them behind `end`.
    """

    end: int
    reused: int
    fresh: int
    missed: int
    missed_behind: int


class Lookups:
    """Looks for every rank's files; a passage is stored where all are."""

    def __init__(self, store: TieredStore, model_fingerprint: str, heads: Sequence[tuple[int, int]]) -> None:
        self._store, self._fingerprint, self._heads = store, model_fingerprint, heads
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="kvblend-lookup")

    def begin(self, spans: Sequence[PlacedSpan]) -> Future[Found]:
        return self._threads.submit(self._find, spans)

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._store.close()

    def _find(self, spans: Sequence[PlacedSpan]) -> Found:
        passages = [span for span in spans if span.start > 0 or not span.exact]
        stored = [span for span in passages if span.stored_as is not None and self._is_stored(span)]
        end = max((span.end for span in stored), default=0)
        reused = sum(span.end - span.start for span in stored)
        inside = sum(span.end - span.start for span in passages if span.end <= end)
        missed = [span for span in passages if span.stored_as is not None and span not in stored]
        return Found(end, reused, inside - reused, len(missed), sum(span.start >= end for span in missed))

    def _is_stored(self, span: PlacedSpan) -> bool:
        return all(self._store.lookup(span.key(self._fingerprint, heads)) is not None for heads in self._heads)
