"""Cut a document into windows, each prefilled in one pass, out of which the KV of its passages is cut.

So a passage is encoded behind the text that precedes it in its own document, as far as its window reaches, and every
token is prefilled once. No other document's text is in front of it: deleting a document deletes all KV that knows it.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

from kvblend.api.kv.encode_context import EncodeContext
from kvblend.api.kv.encode_run import EncodeRun
from kvblend.core.identity import token_hash

__all__ = ["LEAD_TOKENS", "WINDOW_TOKENS", "document_windows"]

Tokens = tuple[int, ...]

WINDOW_TOKENS = 3072
"""At most, of passages. Behind one passage of its document a passage is as near to full prefill as behind all of them
(docs/selection.md), so that longer windows would only make an edit dearer."""

LEAD_TOKENS = 256
"""Of the text before a window that stand in front of its first passage."""


def document_windows(
    context: EncodeContext, passages: Sequence[Tokens], *, window_tokens: int = WINDOW_TOKENS
) -> list[EncodeRun]:
    """A document's passages in order, in windows of at most `window_tokens` (one longer passage is a window alone).

    The first window stands behind `context`; every other behind the preamble and the last 256 tokens of the text
    before it. Borders follow the content: there is one where the hash of the two passages that meet is the highest
    within a third of a window on both sides. So an edit changes the windows that it touches, and those at its sides
    only where a border goes or comes. A passage that the document repeats is encoded where it first stands.
    """
    places = [_place_hash(before, after) for before, after in pairwise(passages)]
    ends = list(accumulate(len(passage) for passage in passages))
    cuts = [0, *_highest(places, ends, reach=window_tokens // 3), len(passages)]
    runs, seen = [], set[Tokens]()
    for start, end in pairwise(cuts):
        for first, last in _bounded(start, end, places, [0, *ends], window_tokens):
            repeated = set()
            for index in range(first, last):
                if passages[index] in seen:
                    repeated.add(index - first)
                seen.add(passages[index])
            lead = _lead(context, passages[max(0, first - LEAD_TOKENS) : first]) if first else context
            runs.append(EncodeRun(lead, tuple(passages[first:last]), frozenset(repeated)))
    return runs


def _lead(context: EncodeContext, before: Sequence[Tokens]) -> EncodeContext:
    """The preamble and the end of the passages before a window."""
    text = [token for passage in before for token in passage][-LEAD_TOKENS:]
    return EncodeContext((*context.preamble_ids, *text), context.num_preamble, context.salt)


def _highest(places: Sequence[bytes], ends: Sequence[int], *, reach: int) -> list[int]:
    """The places, by the number of passages before them, whose hash is the highest within `reach` tokens."""
    found = []
    for index, place in enumerate(places):
        rivals = []
        for step in (-1, 1):
            other = index + step
            while 0 <= other < len(places) and abs(ends[other] - ends[index]) <= reach:
                rivals.append(places[other])
                other += step
        if all(place > rival for rival in rivals):
            found.append(index + 1)
    return found


def _bounded(
    start: int, end: int, places: Sequence[bytes], begins: Sequence[int], most: int
) -> Iterator[tuple[int, int]]:
    """Passages `[start, end)` in parts of at most `most` tokens: each cut at the highest place of its second half."""
    while begins[end] - begins[start] > most and end - start > 1:
        fitting = max(bisect_right(begins, begins[start] + most) - 1, start + 1)
        half = [cut for cut in range(start + 1, fitting + 1) if begins[cut] - begins[start] >= most / 2] or [fitting]
        cut = max(half, key=lambda cut: (places[cut - 1], cut))
        yield start, cut
        start = cut
    yield start, end


def _place_hash(before: Tokens, after: Tokens) -> bytes:
    return hashlib.blake2b(f"{token_hash(before)}{token_hash(after)}".encode(), digest_size=8).digest()
