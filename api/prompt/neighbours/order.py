"""The order of a prompt's passages: what was retrieved, so that as much of it as possible stands where its KV fits.

retrieved, by rank     1   2   3   4   5        4 was encoded behind 1, 2 behind 5; 3 has no KV yet
order "fit"            1   4 | 5   2 | 3
                           fits    fits  last, where vLLM prefills it
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from kvblend.api.prompt.neighbours.links import Link, best_links, paths
from kvblend.core.rest import OrderName

__all__ = ["ORDER_NAMES", "Neighbours", "OrderName", "PlannedOrder", "Ranked", "Standing", "judge", "plan_order"]

ORDER_NAMES: tuple[OrderName, ...] = get_args(OrderName)

Standing = Literal["exact", "fits", "reused", "missing"]
"""How a passage's KV suits its place. `exact`: it was computed behind just what stands in front of it. `fits`: directly
behind the passage that stands directly in front of it. `reused`: behind something else. `missing`: it has none."""


@dataclass(frozen=True)
class Ranked:
    """A retrieved passage. `document`: the document it is of, and its number there."""

    num_tokens: int
    is_stored: bool = True
    document: tuple[str, int] | None = None


@dataclass(frozen=True)
class Neighbours:
    """What the stored KV of retrieved passages fits, by their numbers in retrieved order, from 0.

    `pairs`: of each, the second has KV that was computed directly behind the first.
    `exact`: beginnings of a prompt whose last passage has KV that was computed behind the preamble and the others: a
    single passage where it is exact when first.
    """

    pairs: frozenset[Link] = frozenset()
    exact: frozenset[tuple[int, ...]] = frozenset()


@dataclass(frozen=True)
class PlannedOrder:
    """Retrieved passages' numbers by their place in the prompt, and how the KV of each suits that place."""

    order: tuple[int, ...]
    standings: tuple[Standing, ...]

    def num_tokens(self, passages: Sequence[Ranked], *standings: Standing) -> int:
        """Tokens of the passages that stand in one of these ways."""
        placed = zip(self.order, self.standings, strict=True)
        return sum(passages[number].num_tokens for number, standing in placed if standing in standings)


def plan_order(
    passages: Sequence[Ranked], neighbours: Neighbours, *, order: OrderName = "fit", free: bool = False
) -> PlannedOrder:
    """Order passages, given in retrieved order, by one of the rules; the same input has the same order.

    `rank`: as retrieved.
    `document`: passages of one document together and in its order, documents by their best passage.
    `fit`: the most tokens stand where their KV is exact or fits, of equal orders the one with the most exact tokens,
    and as retrieved where nothing fits. The best-ranked passage stays first, stored or not, for what stands first may
    weigh more with a model; `free` gives that up. The other passages without KV come last.
    """
    if order == "rank":
        return judge(passages, neighbours, range(len(passages)))
    if order == "document":
        return judge(passages, neighbours, _by_document(passages))
    best: PlannedOrder | None = None
    best_tokens = (-1, -1)
    for numbers in _candidates(passages, neighbours, free=free):
        planned = judge(passages, neighbours, numbers)
        tokens = planned.num_tokens(passages, "exact", "fits"), planned.num_tokens(passages, "exact")
        if tokens > best_tokens:
            best, best_tokens = planned, tokens
    assert best is not None
    return best


def judge(passages: Sequence[Ranked], neighbours: Neighbours, order: Iterable[int]) -> PlannedOrder:
    """How the KV of passages suits their places in this order."""
    numbers = tuple(order)

    def standing(place: int) -> Standing:
        if not passages[numbers[place]].is_stored:
            return "missing"
        if numbers[: place + 1] in neighbours.exact:
            return "exact"
        return "fits" if place and numbers[place - 1 : place + 1] in neighbours.pairs else "reused"

    return PlannedOrder(numbers, tuple(map(standing, range(len(numbers)))))


def _candidates(passages: Sequence[Ranked], neighbours: Neighbours, *, free: bool) -> Iterable[tuple[int, ...]]:
    """Orders of which one has the most that fits: as retrieved, then for each way to begin the best one."""
    numbers = range(len(passages))
    head = None if free or not passages else 0
    movable = [number for number in numbers if passages[number].is_stored or number == head]
    missing = [number for number in numbers if number not in movable]
    yield (*movable, *missing)
    pairs = [(before, passage) for before, passage in neighbours.pairs if before in movable and passage in movable]
    chains = [chain for chain in neighbours.exact if set(chain) <= set(movable) and (free or chain[0] == head)]
    for chain in [() if head is None else (head,), *sorted(chains)]:
        links = best_links(
            [passage.num_tokens for passage in passages],
            pairs,
            forced=pairwise(chain),
            heads=chain[:1],
        )
        found = [path for path in paths(len(passages), links) if path[0] not in missing]
        begins = [path for path in found if path[:1] == list(chain[:1])]
        found = [*begins, *(path for path in found if path not in begins)]
        yield (*(number for path in found for number in path), *missing)


def _by_document(passages: Sequence[Ranked]) -> list[int]:
    best: dict[str, int] = {}
    for number, passage in enumerate(passages):
        if passage.document is not None:
            best.setdefault(passage.document[0], number)

    def place(number: int) -> tuple[int, int, int]:
        document = passages[number].document
        return (number, 0, 0) if document is None else (best[document[0]], document[1], number)

    return sorted(range(len(passages)), key=place)
