"""The path cover: no choice of links has more tokens, and the greedy one has a third at least."""

from itertools import chain, combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from kvblend.api.prompt.neighbours.links import Link, best_links, paths

SIZE = 5
NUMBERS = st.integers(0, SIZE - 1)
PAIRS = st.frozensets(st.tuples(NUMBERS, NUMBERS).filter(lambda pair: pair[0] != pair[1]), max_size=9)
TOKENS = st.lists(st.integers(1, 9), min_size=SIZE, max_size=SIZE)


def _is_cover(links: tuple[Link, ...]) -> bool:
    """Whether links can stand in one order: nothing twice behind or in front, and every passage on some path."""
    before = {passage: other for other, passage in links}
    if len(before) < len(links) or len(set(before.values())) < len(links):
        return False
    return sorted(chain.from_iterable(paths(SIZE, before))) == list(range(SIZE))


def _tokens(before: dict[int, int], num_tokens: list[int]) -> int:
    return sum(num_tokens[passage] for passage in before)


@settings(deadline=None)
@given(TOKENS, PAIRS)
def test_no_links_have_more_tokens(num_tokens: list[int], pairs: frozenset[Link]) -> None:
    """Reference: all sets of links. A single step of the search is the greedy choice: a third of the best at least,
    which is the bound for a choice under three constraints of this kind."""
    found = best_links(num_tokens, pairs)
    assert {(other, passage) for passage, other in found.items()} <= pairs
    assert _is_cover(tuple((other, passage) for passage, other in found.items()))
    subsets = chain.from_iterable(combinations(sorted(pairs), size) for size in range(SIZE))
    best = max(sum(num_tokens[passage] for _, passage in links) for links in subsets if _is_cover(links))
    assert _tokens(found, num_tokens) == best
    greedy = _tokens(best_links(num_tokens, pairs, max_steps=0), num_tokens)
    assert best / 3 <= greedy <= best


def test_greedy_can_be_worse() -> None:
    """Behind 0 fit 1 and 2, behind 3 only 1: greedy gives 0 to 1, the longer one, and nothing is left for 2."""
    num_tokens, pairs = [5, 6, 5, 5], [(0, 1), (0, 2), (3, 1)]
    assert best_links(num_tokens, pairs, max_steps=0) == {1: 0}
    assert best_links(num_tokens, pairs) == {1: 3, 2: 0}


def test_all_pairs_of_many_passages_are_soon_chosen() -> None:
    num_passages = 64
    pairs = [(a, b) for a in range(num_passages) for b in range(num_passages) if a != b]
    found = best_links([7] * num_passages, pairs, heads=[0])
    assert paths(num_passages, found)[0][0] == 0
    assert len(found) == num_passages - 1
