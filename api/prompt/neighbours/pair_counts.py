"""Which passages queries bring together, counted: what a KV behind one another would be worth.

On the RAGPulse trace, with pairs stored that weigh the most, .36, .50 and .56 of passages behind the first stand where
they fit for 500, 2,000 and 5,000 pairs; least recently used, .31, .48 and .58 at two to four times the encodes.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from heapq import nsmallest
from itertools import pairwise
from typing import NamedTuple

__all__ = ["PairCounts", "PassageVariant"]

HALF_LIFE = 2000.0
"""Requests, not hours: what was learned is not lost over a quiet weekend, and a busy hour makes room for its own. From
500 to 3,000 the trace's share of passages that fit moves by a hundredth."""
MAX_PAIRS = 20_000
"""Of one collection, of some 200 bytes each. A trace of 2,820 requests brings 31,000 together, half of them once."""
TOGETHER = 0.3
"""What it counts that two passages were retrieved together, where that they stood behind one another counts 1."""
LEAST = 1.5
"""What is encoded has come back at least once: what came together once may never again, and most pairs do not."""
KEPT = 0.75
LARGEST_SCALE = 2.0**200


class PassageVariant(NamedTuple):
    """A passage's KV behind the preamble and one other passage; `before` is empty where it is behind the preamble
    alone, for prompts that begin with it. Both are passage ids."""

    before: str
    passage: str

    @property
    def passages(self) -> tuple[str, ...]:
        return (self.before, self.passage) if self.before else (self.passage,)


class PairCounts:
    """Counts of one collection, each halved with every `half_life` requests. Not safe from several threads at once.

    It holds `max_pairs` at most: a quarter goes at a time, of those that weigh the least.
    """

    def __init__(self, *, half_life: float = HALF_LIFE, max_pairs: int = MAX_PAIRS) -> None:
        self._growth = 2.0 ** (1.0 / half_life)
        self._scale = 1.0  # what a count of 1 adds now; instead of all others getting smaller, it grows
        self._max_pairs = max_pairs
        self._weights: dict[PassageVariant, float] = {}

    def __len__(self) -> int:
        return len(self._weights)

    def note(
        self, served: Sequence[str], retrieved: Sequence[str] = (), *, known: Collection[tuple[str, str]] = ()
    ) -> None:
        """Count a request. `served`: passage ids as they stood in its prompt; `retrieved`: by rank, which says what
        else could have stood behind what. `known`: pairs that fit anyhow, as neighbours in a document do."""
        self._scale *= self._growth
        if served:
            self._add(PassageVariant("", served[0]), 1.0)
        for before, passage in pairwise(served):
            if (before, passage) not in known:
                self._add(PassageVariant(before, passage), 1.0)
        for before in retrieved:
            for passage in retrieved[1:]:  # the best-ranked one stands first, behind nothing
                if before != passage and (before, passage) not in known:
                    self._add(PassageVariant(before, passage), TOGETHER)
        if len(self._weights) > self._max_pairs:
            kept = sorted(self._weights.items(), key=_heaviest)[: int(KEPT * self._max_pairs)]
            self._weights = dict(kept)
        if self._scale > LARGEST_SCALE:
            self._weights = {variant: weight / self._scale for variant, weight in self._weights.items()}
            self._scale = 1.0

    def passage_ids(self) -> set[str]:
        """All passages that something was counted of."""
        return {passage for variant in self._weights for passage in variant.passages}

    def count(self, variant: PassageVariant) -> float:
        """What is left of a variant's counts."""
        return self._weights.get(variant, 0.0) / self._scale

    def heaviest(self, limit: int) -> list[tuple[PassageVariant, float]]:
        """So many pairs with what is left of their counts, the largest first; none of a passage that begins prompts."""
        pairs = ((variant, weight / self._scale) for variant, weight in self._weights.items() if variant.before)
        return nsmallest(limit, pairs, key=_heaviest)

    def counts(self) -> list[tuple[PassageVariant, float]]:
        """All that is left, to be kept over a restart."""
        return [(variant, weight / self._scale) for variant, weight in self._weights.items()]

    def restore(self, counts: Iterable[tuple[PassageVariant, float]]) -> None:
        """Take counts up that were kept."""
        for variant, count in counts:
            self._add(variant, count)

    def forget(self, passage_ids: Collection[str]) -> bool:
        """Drop passages that are no more, with all that was counted behind them; whether there was any."""
        ids = frozenset(passage_ids)
        gone = [variant for variant in self._weights if any(passage in ids for passage in variant.passages)]
        for variant in gone:
            del self._weights[variant]
        return bool(gone)

    def most_valuable(
        self, budget_bytes: int, *, num_tokens: Callable[[str], int | None], token_bytes: float, file_bytes: int = 4096
    ) -> list[PassageVariant]:
        """The variants that save the most repair for each byte of KV, within a budget, the best one first; none that
        was counted once.

        A use saves what the ratio asks for of the passage's tokens, and a token costs `token_bytes`, a file
        `file_bytes` beside: so variants go by their counts, long passages first among equals. `num_tokens` gives a
        passage's; None where it is not to be had any more.
        """
        wanted = {variant: weight for variant, weight in self._weights.items() if weight >= LEAST * self._scale}
        sizes = {passage: num_tokens(passage) for variant in wanted for passage in variant.passages}
        found = []
        for variant, weight in wanted.items():
            size = sizes[variant.passage]
            if size is not None and (not variant.before or sizes[variant.before] is not None):
                num_bytes = size * token_bytes + file_bytes
                found.append((-weight * size / num_bytes, variant, num_bytes))
        chosen, left = [], float(budget_bytes)
        for _, variant, num_bytes in sorted(found):
            if num_bytes > left:
                break
            chosen.append(variant)
            left -= num_bytes
        return chosen

    def _add(self, variant: PassageVariant, count: float) -> None:
        self._weights[variant] = self._weights.get(variant, 0.0) + count * self._scale


def _heaviest(item: tuple[PassageVariant, float]) -> tuple[float, PassageVariant]:
    variant, weight = item
    return -weight, variant
