"""Which of several servers answers: what they hold, how busy they are, and who has answered this context before."""

from hypothesis import given
from hypothesis import strategies as st

from kvblend.api.engine.choice import Candidate, Wanted, best_first

CANDIDATES = st.lists(
    st.builds(Candidate, st.text(min_size=1), st.integers(0, 50), st.integers(0, 10_000)),
    min_size=1,
    max_size=6,
    unique_by=lambda each: each.url,
)


def chosen(*candidates: Candidate, session: str = "any") -> str:
    return candidates[best_first(candidates, session)[0]].url


def test_who_holds_most_answers() -> None:
    assert chosen(Candidate("a", 0, 100), Candidate("b", 0, 900), Candidate("c", 0, 0)) == "b"
    assert chosen(Candidate("a", 1, 100), Candidate("b", 1, 900)) == "b"


def test_but_not_where_it_is_too_busy() -> None:
    """Of 3 requests, and this one, a server's share is 2: with 3 it has more than its part."""
    assert chosen(Candidate("a", 0, 0), Candidate("b", 3, 900)) == "a"


def test_where_all_hold_the_same_the_least_busy_answers() -> None:
    for session in map(str, range(20)):
        assert chosen(Candidate("a", 1, 500), Candidate("b", 0, 500), session=session) == "b"


def test_equals_are_chosen_by_the_context() -> None:
    equal = [Candidate(url, 0, 0) for url in "abc"]
    by_session = {session: chosen(*equal, session=session) for session in map(str, range(60))}
    assert set(by_session.values()) == set("abc")
    assert by_session == {session: chosen(*reversed(equal), session=session) for session in by_session}
    fewer = {session: chosen(*equal[:2], session=session) for session in by_session}
    assert all(fewer[session] == url for session, url in by_session.items() if url != "c"), "others stay where they are"


@given(CANDIDATES, st.text())
def test_all_are_there_once_and_the_first_is_within_its_bound(candidates: list[Candidate], session: str) -> None:
    order = best_first(candidates, session)
    assert sorted(order) == list(range(len(candidates)))
    total, first = sum(each.num_requests for each in candidates), candidates[order[0]]
    assert first.num_requests <= 1.25 * (total + 1) / len(candidates)
    idle = [each for each in candidates if each.num_requests == 0]
    assert all(each.num_held <= first.num_held for each in idle)


def test_any_kv_of_a_passage_will_do() -> None:
    one, other, own = ("one", "p"), ("other", "p"), ("own", "q")
    wanted = Wanted([(100, [one, other]), (30, [own]), (30, [own])], "session")
    assert wanted.names == [one, other, own]
    assert [wanted.num_held(held) for held in (set(), {other}, {one, other}, {own})] == [0, 100, 100, 60]
