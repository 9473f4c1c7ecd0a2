"""From what is stored to what fits."""

from kvblend.api.prompt.neighbours import Neighbours, PassageVariant, candidate_variants, stored_neighbours


def test_candidates_are_all_that_an_order_could_use() -> None:
    found = candidate_variants(["a", "b", "a"])
    assert set(found) == {
        PassageVariant("", "a"),
        PassageVariant("", "b"),
        PassageVariant("a", "b"),
        PassageVariant("b", "a"),
    }
    assert len(candidate_variants([str(number) for number in range(8)])) == 64


def test_a_pair_is_exact_where_it_begins_and_fits_elsewhere() -> None:
    variants = {PassageVariant("", "a"), PassageVariant("b", "c"), PassageVariant("x", "c")}
    found = stored_neighbours(["a", "b", "c"], variants, follows={("a", "b"), ("c", "y")})
    assert found == Neighbours(frozenset({(0, 1), (1, 2)}), frozenset({(0,), (1, 2)}))
