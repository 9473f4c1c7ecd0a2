"""Counts of pairs: how they fade, what is given up, and what is chosen to be encoded."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvblend.api.prompt.neighbours import PairCounts, PassageVariant
from kvblend.api.prompt.neighbours.pair_counts import TOGETHER

AB, BC = PassageVariant("a", "b"), PassageVariant("b", "c")


def _tokens(passage: str) -> int:
    return 100


def test_what_stood_behind_one_another_counts_and_what_could_have_counts_less() -> None:
    counts = PairCounts(half_life=1e9)
    counts.note(["a", "c", "b"], ["a", "b", "c"])
    assert counts.count(PassageVariant("a", "c")) == pytest.approx(1 + TOGETHER)
    assert counts.count(PassageVariant("a", "b")) == pytest.approx(TOGETHER)
    assert counts.count(PassageVariant("b", "a")) == 0  # the best-ranked passage stands behind nothing
    assert counts.count(PassageVariant("", "a")) == pytest.approx(1)


def test_neighbours_in_a_document_are_not_counted() -> None:
    counts = PairCounts()
    counts.note(["a", "b", "c"], ["a", "b", "c"], known={("a", "b")})
    assert counts.count(AB) == 0
    assert counts.count(BC) > 1


def test_a_count_halves_with_every_half_life() -> None:
    counts = PairCounts(half_life=10)
    counts.note(["a", "b"])
    for expected in (0.5, 0.25):
        for _ in range(10):
            counts.note([])
        assert counts.count(AB) == pytest.approx(expected)


def test_counts_stay_right_for_ever() -> None:
    """The scale of counts doubles every request here, and starts over beyond 2 to the 200."""
    counts = PairCounts(half_life=1)
    for _ in range(5000):
        counts.note(["a", "b"])
    assert counts.count(AB) == pytest.approx(2.0)


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=5, unique=True), max_size=40))
def test_counts_are_bounded_and_the_heaviest_stay(requests: list[list[str]]) -> None:
    """Reference: counts without a bound, of which a variant that is asked for in every request is never given up."""
    counts, whole = PairCounts(half_life=20, max_pairs=12), PairCounts(half_life=20)
    for request in requests:
        for each in (counts, whole):
            each.note(["x", "y"])
            each.note(request, request)
        assert len(counts) <= 12
        assert counts.count(PassageVariant("x", "y")) == pytest.approx(whole.count(PassageVariant("x", "y")))
        assert all(count <= whole.count(variant) * (1 + 1e-9) for variant, count in counts.counts())


def test_the_most_valuable_fit_the_budget() -> None:
    """A kilobyte a token: two variants of 100 tokens fit 250 kB. What nobody knows any more is passed over."""
    counts = PairCounts(half_life=1e9)
    for served, times in ((["a", "b"], 3), (["d", "gone", "e"], 9), (["c", "d"], 2)):
        for _ in range(times):
            counts.note(served)

    def num_tokens(passage: str) -> int | None:
        return None if passage == "gone" else 100

    best = counts.most_valuable(250_000, num_tokens=num_tokens, token_bytes=1000, file_bytes=0)
    assert best == [PassageVariant("", "d"), PassageVariant("", "a")]
    best = counts.most_valuable(10**9, num_tokens=num_tokens, token_bytes=1000, file_bytes=0)
    assert best == [
        PassageVariant("", "d"),
        PassageVariant("", "a"),
        AB,
        PassageVariant("", "c"),
        PassageVariant("c", "d"),
    ]
    assert counts.most_valuable(99_000, num_tokens=num_tokens, token_bytes=1000) == []


def test_of_equal_counts_the_longer_passage_goes_first() -> None:
    """Each file has its own bytes beside the tokens'."""
    counts = PairCounts(half_life=1e9)
    for _ in range(2):
        assert counts.most_valuable(10**9, num_tokens=_tokens, token_bytes=1000) == [], "it has not come back"
        counts.note(["a", "b", "c"])
    best = counts.most_valuable(10**9, num_tokens={"a": 10, "b": 50, "c": 90}.get, token_bytes=1000)
    assert [variant.passage for variant in best] == ["c", "b", "a"]


def test_the_heaviest_pairs_are_told() -> None:
    """Not what begins a prompt, which is no pair."""
    counts = PairCounts(half_life=1e9)
    counts.note(["a", "b", "c"])
    counts.note(["b", "c"])
    (best, count), *others = counts.heaviest(10)
    assert (best, round(count, 6)) == (BC, 2.0) and [pair for pair, _ in others] == [AB]
    assert counts.heaviest(1) == [(best, count)]


def test_deleted_passages_are_forgotten_on_either_side() -> None:
    counts = PairCounts()
    counts.note(["a", "b", "c"])
    assert counts.forget({"a"})
    assert not counts.forget({"a"})
    assert {variant for variant, _ in counts.counts()} == {BC}


def test_restored_counts_are_as_they_were() -> None:
    counts, restored = PairCounts(half_life=5), PairCounts(half_life=5)
    for _ in range(7):
        counts.note(["a", "b"], ["a", "b"])
    restored.restore(counts.counts())
    for each in (counts, restored):
        each.note(["b", "c"])
    assert dict(restored.counts()) == pytest.approx(dict(counts.counts()))
