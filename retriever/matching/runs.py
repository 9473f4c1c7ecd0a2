"""Runs of a passage's tokens in a prompt: compared token by token, and chosen so that no two overlap."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from kvblend.retriever.matching.grams import GRAM_TOKENS, STRIDE

__all__ = ["MIN_SHARE", "MIN_TOKENS", "Run", "disjoint_runs", "equal_runs"]

MIN_TOKENS = GRAM_TOKENS + STRIDE - 1
"""32: the longest run that grams alone could miss is shorter. What a passage shares by chance is shorter, too, and to
open a file costs about what computing so few tokens does."""
MIN_SHARE = 0.25
"""Of a passage: all of it is read, however little of it is used."""


@dataclass(frozen=True)
class Run:
    """Prompt tokens `[start, end)`, which are those of a passage from its token `skipped` on."""

    passage_id: str
    start: int
    end: int
    skipped: int
    num_passage_tokens: int

    def __len__(self) -> int:
        return self.end - self.start

    @property
    def counts(self) -> bool:
        """Whether it is long enough to be of use."""
        return len(self) >= max(MIN_TOKENS, MIN_SHARE * self.num_passage_tokens)

    def part(self, start: int, end: int) -> "Run":
        """Those of its tokens that are at `[start, end)`."""
        return Run(self.passage_id, start, end, self.skipped + start - self.start, self.num_passage_tokens)


def equal_runs(passage_id: str, passage: NDArray[np.int64], token_ids: NDArray[np.int64], offset: int) -> Iterator[Run]:
    """The runs that count of a passage in a prompt, its token 0 at `offset`."""
    first, last = max(0, -offset), min(len(passage), len(token_ids) - offset)
    if last <= first:
        return
    same = passage[first:last] == token_ids[offset + first : offset + last]
    if same.all():  # the rule, and done sooner
        whole = Run(passage_id, offset + first, offset + last, first, len(passage))
        if whole.counts:
            yield whole
        return
    equal = np.zeros(last - first + 2, np.int8)
    equal[1:-1] = same
    edges = np.diff(equal).nonzero()[0]
    for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        start = offset + first + begin
        run = Run(passage_id, start, start + end - begin, first + begin, len(passage))
        if run.counts:
            yield run


def disjoint_runs(runs: Iterable[Run], num_tokens: int) -> list[Run]:
    """Runs in a prompt of `num_tokens`, in its order; the longest whole, others as far as they are not covered.

    Of runs as long, that which is more of its passage; at last by name, so that the same prompt gets the same runs.
    """
    in_place = sorted((run for run in runs if run.counts), key=lambda run: run.start)
    if all(run.end <= next_.start for run, next_ in pairwise(in_place)):
        return in_place
    order = sorted(in_place, key=lambda run: (-len(run), run.num_passage_tokens, run.start, run.passage_id))
    covered, chosen = np.zeros(num_tokens, bool), list[Run]()
    for run in order:
        for start, end in _free(covered, run):
            part = run.part(start, end)
            if part.counts:
                chosen.append(part)
                covered[start:end] = True
    return sorted(chosen, key=lambda run: run.start)


def _free(covered: NDArray[np.bool_], run: Run) -> list[tuple[int, int]]:
    """The stretches of a run that nothing covers yet."""
    free = np.zeros(len(run) + 2, np.int8)
    free[1:-1] = ~covered[run.start : run.end]
    edges = (np.diff(free).nonzero()[0] + run.start).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))
