"""What retrieved passages fit, by which variants of them are stored."""

from collections.abc import Collection, Sequence

from kvblend.api.prompt.neighbours.order import Neighbours
from kvblend.api.prompt.neighbours.pair_counts import PassageVariant

__all__ = ["candidate_variants", "stored_neighbours"]


def candidate_variants(passage_ids: Sequence[str]) -> list[PassageVariant]:
    """Every variant that some order of these passages could use: `k * k` of `k` passages."""
    distinct = list(dict.fromkeys(passage_ids))
    return [PassageVariant(before, passage) for passage in distinct for before in ("", *distinct) if before != passage]


def stored_neighbours(
    passage_ids: Sequence[str], variants: Collection[PassageVariant], *, follows: Collection[tuple[str, str]]
) -> Neighbours:
    """What fits among passages in retrieved order.

    `variants`: those that are stored. One behind another passage is exact where that begins the prompt. `follows`:
    pairs of which the second's own KV was computed directly behind the first, in their document, and is stored.
    """
    numbered = list(enumerate(passage_ids))
    apart = [(i, j, a, b) for i, a in numbered for j, b in numbered if a != b]
    behind = {(i, j) for i, j, a, b in apart if PassageVariant(a, b) in variants}
    in_document = {(i, j) for i, j, a, b in apart if (a, b) in follows}
    first = {(i,) for i, passage in numbered if PassageVariant("", passage) in variants}
    return Neighbours(frozenset(behind | in_document), frozenset(first | behind))
