"""Orders: what each rule keeps, whatever was retrieved, and that no order of its kind has more that fits."""

from itertools import permutations

from hypothesis import given, settings

from kvblend.api.prompt.neighbours import Neighbours, PlannedOrder, Ranked, plan_order
from kvblend.api.prompt.neighbours.order import ORDER_NAMES, judge
from tests.api.prompt.neighbours.samples import prompts

Prompt = tuple[list[Ranked], Neighbours]


def _value(passages: list[Ranked], planned: PlannedOrder) -> tuple[int, int]:
    return planned.num_tokens(passages, "exact", "fits"), planned.num_tokens(passages, "exact")


def _missing_last(passages: list[Ranked], *, free: bool) -> list[int]:
    """The numbers as retrieved, but for passages without KV, which come last; the best-ranked one where not `free`."""
    return sorted(range(len(passages)), key=lambda number: not passages[number].is_stored and (free or number > 0))


@given(prompts())
def test_every_order_is_a_permutation_and_the_same_again(prompt: Prompt) -> None:
    passages, neighbours = prompt
    for name in ORDER_NAMES:
        for free in (False, True):
            planned = plan_order(passages, neighbours, order=name, free=free)
            assert sorted(planned.order) == list(range(len(passages)))
            assert planned == plan_order(passages, neighbours, order=name, free=free)
            assert planned == judge(passages, neighbours, planned.order)


@given(prompts())
def test_the_best_ranked_passage_is_first_and_missing_ones_last(prompt: Prompt) -> None:
    passages, neighbours = prompt
    fit, free = (plan_order(passages, neighbours, free=free) for free in (False, True))
    assert fit.order[0] == 0
    for planned, start in ((fit, 1), (free, 0)):
        stored = [passages[number].is_stored for number in planned.order[start:]]
        assert stored == sorted(stored, reverse=True)
        missing = [number for number in planned.order[start:] if not passages[number].is_stored]
        assert missing == sorted(missing)


@settings(deadline=None)
@given(prompts())
def test_no_order_of_its_kind_has_more_that_fits(prompt: Prompt) -> None:
    """Reference: the best of all permutations. So rank order with missing passages last is never better either."""
    passages, neighbours = prompt
    for free in (False, True):
        template = _missing_last(passages, free=free)
        num_free = sum(passages[number].is_stored or (number == 0 and not free) for number in template)
        moved = template[:num_free]
        orders = [
            judge(passages, neighbours, (*moving, *template[num_free:]))
            for moving in permutations(moved)
            if free or moving[0] == 0
        ]
        best = max(_value(passages, order) for order in orders)
        assert _value(passages, plan_order(passages, neighbours, free=free)) == best


@given(prompts())
def test_as_retrieved_where_nothing_fits(prompt: Prompt) -> None:
    passages, _ = prompt
    planned = plan_order(passages, Neighbours())
    assert list(planned.order) == _missing_last(passages, free=False)
    assert set(planned.standings) <= {"reused", "missing"}


def test_exact_begins_then_fits_then_missing() -> None:
    """Passage 2 has a variant that is exact behind 0, and 3 one behind 1; 4 has no KV."""
    passages = [Ranked(10), Ranked(10), Ranked(10), Ranked(10), Ranked(10, is_stored=False), Ranked(10)]
    neighbours = Neighbours(frozenset({(0, 2), (1, 3), (5, 3)}), frozenset({(0,), (0, 2)}))
    planned = plan_order(passages, neighbours)
    assert planned.order == (0, 2, 1, 3, 5, 4)
    assert planned.standings == ("exact", "exact", "reused", "fits", "reused", "missing")


def test_more_tokens_that_fit_go_before_fewer_that_are_exact() -> None:
    """Both 1 and 2 fit behind 0 and nothing else does: repair is of what does not fit, so that the longer one goes."""
    passages = [Ranked(10), Ranked(10), Ranked(11)]
    planned = plan_order(passages, Neighbours(frozenset({(0, 1), (0, 2)}), frozenset({(0, 1)})))
    assert planned.order == (0, 2, 1)


def test_a_free_order_begins_with_the_predecessor_of_the_best() -> None:
    passages = [Ranked(10), Ranked(10), Ranked(10)]
    neighbours = Neighbours(frozenset({(2, 0)}))
    assert plan_order(passages, neighbours).order == (0, 1, 2)
    assert plan_order(passages, neighbours, free=True).order == (2, 0, 1)


def test_document_order() -> None:
    """Documents by their best passage, each in its own order; what is of no document stays where it ranks."""
    passages = [Ranked(1, document=("b", 7)), Ranked(1), Ranked(1, document=("a", 2)), Ranked(1, document=("b", 6))]
    assert plan_order(passages, Neighbours(), order="document").order == (3, 0, 1, 2)


def test_a_prompt_without_passages() -> None:
    for name in ORDER_NAMES:
        assert plan_order([], Neighbours(), order=name) == PlannedOrder((), ())
