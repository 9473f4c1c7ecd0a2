"""Passages of a real catalog in prompts of random pieces: all that is there is found, nothing else, nobody else's."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvblend.core.collection_name import DEFAULT_TENANT
from kvblend.retriever.catalog import Catalog
from kvblend.retriever.matching import MIN_SHARE, MIN_TOKENS, PassageMatcher, TokenMatch
from kvblend.retriever.matching.gram_index import MAX_CANDIDATES
from kvblend.retriever.matching.gram_table import MAX_HOLDERS
from kvblend.retriever.matching.matcher import MAX_TABLES, PAGE, SPARE
from kvblend.retriever.packing import PassageText
from kvblend.retriever.records import NewDocument

Tokens = list[int]
VECTOR = np.zeros(4, np.float32)


@dataclass
class Shelf:
    """A catalog and the matcher that follows it."""

    catalog: Catalog
    matcher: PassageMatcher = field(init=False)

    def __post_init__(self) -> None:
        self.matcher = PassageMatcher(self.catalog)

    def put(self, collection: str, document: str, passages: list[Tokens], contexts: list[str] | None = None) -> None:
        texts = [PassageText(f"{document} {place}", tuple(tokens)) for place, tokens in enumerate(passages)]
        if collection not in [own.name for own in self.catalog.list_settings()]:
            self.catalog.create_collection(collection, passage_tokens=512)
        new = NewDocument(document, document, "text/plain", document, {})
        vectors = {text.passage_id: VECTOR for text in texts}
        self.catalog.put_document(collection, new, texts, vectors, contexts or [])


@contextmanager
def shelf_in(folder: Path) -> Iterator[Shelf]:
    catalog = Catalog(folder / "catalog.sqlite3")
    try:
        yield Shelf(catalog)
    finally:
        catalog.close()


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    with shelf_in(tmp_path) as shelf:
        yield shelf


def tokens_of(seed: int, length: int) -> Tokens:
    return np.random.default_rng(seed).integers(0, 50_000, length).tolist()  # type: ignore[no-any-return]


def spans(matches: list[TokenMatch]) -> list[tuple[str, int, int, int]]:
    return [(each.passage.text, each.start, each.num_tokens, each.skipped) for each in matches]


def check(prompt: Tokens, matches: list[TokenMatch]) -> None:
    """Whatever is found is there, token by token, in order, apart, and long enough."""
    for each in matches:
        own = each.passage.token_ids[each.skipped : each.skipped + each.num_tokens]
        assert tuple(prompt[each.start : each.start + each.num_tokens]) == own
        assert each.num_tokens >= max(MIN_TOKENS, MIN_SHARE * len(each.passage.token_ids))
    assert all(one.start + one.num_tokens <= other.start for one, other in pairwise(matches))


def test_a_stuff_prompt(shelf: Shelf) -> None:
    """Whole passages among other text; in another order; one twice; edges that a tokenizer merged otherwise."""
    one, two, three = (tokens_of(seed, 100 + seed) for seed in range(3))
    shelf.put("handbook", "a", [one, two])
    shelf.put("handbook", "b", [three])
    free = tokens_of(99, 20)
    prompt = [*free, *three, *free[:5], *one[:-1], 7, *two[2:], *free, *three]
    matches = shelf.matcher.match(prompt)
    check(prompt, matches)
    assert spans(matches) == [
        ("b 0", 20, 102, 0), ("a 0", 127, 99, 0), ("a 1", 227, 99, 2), ("b 0", 346, 102, 0)
    ]  # fmt: skip
    assert [each.holders[0].found.document.name for each in matches] == ["b", "a", "a", "b"]
    assert shelf.matcher.match(free) == shelf.matcher.match([]) == []


def test_parts_of_passages(shelf: Shelf) -> None:
    """From the least length on, of at least a quarter of the passage, wherever in it."""
    long, short = tokens_of(0, 400), tokens_of(1, 60)
    shelf.put("handbook", "a", [long, short])
    assert spans(shelf.matcher.match([1, *long[150:250], 2])) == [("a 0", 1, 100, 150)]
    assert shelf.matcher.match([1, *long[150:249], 2]) == []
    for start in range(28):
        assert spans(shelf.matcher.match([*short[start : start + 32], 5])) == [("a 1", 0, 32, start)]
        assert shelf.matcher.match([5, *short[start : start + 31], 5]) == []
    broken = [*long[:200], 1, *long[201:]]
    assert spans(shelf.matcher.match(broken)) == [("a 0", 0, 200, 0), ("a 0", 201, 199, 201)]


def test_one_inside_another(shelf: Shelf) -> None:
    """The longer run wins; of equal ones that which is the whole of its passage."""
    outer = tokens_of(0, 300)
    shelf.put("handbook", "a", [outer, outer[100:200]])
    assert spans(shelf.matcher.match([1, *outer, 2])) == [("a 0", 1, 300, 0)]
    assert spans(shelf.matcher.match([1, *outer[100:200], 2])) == [("a 1", 1, 100, 0)]
    assert spans(shelf.matcher.match(outer[60:210])) == [("a 0", 0, 150, 60)]


def test_overlapping_passages_share_the_prompt(shelf: Shelf) -> None:
    """Of two that overlap the second gets what the first leaves, where that is enough."""
    text = tokens_of(0, 250)
    shelf.put("handbook", "a", [text[:150], text[110:]])
    assert spans(shelf.matcher.match(text)) == [("a 0", 0, 150, 0), ("a 1", 150, 100, 40)]


def test_only_a_tenants_own(shelf: Shelf) -> None:
    """A collection that is another tenant's gives no match, and no place of a passage that several have."""
    own, theirs, both = (tokens_of(seed, 80) for seed in range(3))
    shelf.put("beta/theirs", "x", [theirs, both], ["t1", "t2"])
    shelf.put("acme/own", "y", [own, both], ["o1", "o2"])
    prompt = [*own, 1, *theirs, 2, *both]
    for tenant, name in (("acme", "acme/own"), ("beta", "beta/theirs")):
        matches = shelf.matcher.match(prompt, tenant)
        check(prompt, matches)
        assert {each.collection for match in matches for each in match.holders} == {name}
        assert [match.start for match in matches] == ([0, 162] if tenant == "acme" else [81, 162])
        assert matches[1].holders[0].found.contexts == (("o2",) if tenant == "acme" else ("t2",))
    assert shelf.matcher.match(prompt, "nobody") == shelf.matcher.match(prompt) == []
    shelf.put("acme/too", "z", [both])
    assert [len(match.holders) for match in shelf.matcher.match(prompt, "acme")] == [1, 2]


OWN = tokens_of(0, 32)


@pytest.mark.parametrize(
    ("theirs", "prompt"),
    [
        ([[*OWN, *tokens_of(1 + number, 16)] for number in range(MAX_HOLDERS)], OWN),
        ([[7] * 100], [*OWN, *[7] * 2 * MAX_CANDIDATES]),
    ],
    ids=["as many as a table keeps", "more candidates than are looked at"],
)
def test_what_another_tenant_holds_hides_nothing(shelf: Shelf, theirs: list[Tokens], prompt: Tokens) -> None:
    """Else whoever misses something of its own in an answer's sources knows that others hold the prompt's text."""
    shelf.put("beta/probes", "x", theirs)
    shelf.put("acme/docs", "y", [OWN])
    assert spans(shelf.matcher.match(prompt, "acme")) == [("y 0", 0, 32, 0)]
    assert shelf.matcher.match(prompt, "beta")


def test_it_follows_the_catalog(shelf: Shelf) -> None:
    """A commit is found at the next match, what is deleted no more; in another collection it is found again."""
    one, two = tokens_of(0, 90), tokens_of(1, 90)
    assert shelf.matcher.match(one) == []
    shelf.put("handbook", "a", [one])
    assert spans(shelf.matcher.match(one)) == [("a 0", 0, 90, 0)]
    shelf.put("handbook", "a", [two])
    assert shelf.matcher.match(one) == [] and spans(shelf.matcher.match(two)) == [("a 0", 0, 90, 0)]
    shelf.put("other", "b", [one])
    assert spans(shelf.matcher.match(one)) == [("b 0", 0, 90, 0)]
    shelf.catalog.delete_document("handbook", "a")
    shelf.catalog.delete_collection("other")
    assert shelf.matcher.match([*one, *two]) == []


def test_catching_up(shelf: Shelf) -> None:
    """A matcher of a catalog that is there takes it up, page by page, and lets go of what is deleted."""
    number = count()
    for document in ("gone", "kept"):
        shelf.put("handbook", document, [tokens_of(next(number), 40) for _ in range(PAGE + 10)])
    for more in range(5):
        shelf.put("handbook", f"gone {more}", [tokens_of(next(number), 20) for _ in range(PAGE)])
    matcher = PassageMatcher(shelf.catalog)
    assert matcher.match(tokens_of(PAGE + 15, 40)) == []  # it takes up a page at a time
    matcher.catch_up()
    assert spans(matcher.match(tokens_of(PAGE + 15, 40))) == [("kept 5", 0, 40, 0)]
    assert len(matcher) == 7 * PAGE + 20 and matcher.num_bytes > 0
    for document in ("gone", *(f"gone {more}" for more in range(5))):
        shelf.catalog.delete_document("handbook", document)
    assert len(matcher) > SPARE + 2 * shelf.catalog.num_passages()
    matcher.catch_up()
    assert len(matcher) == PAGE + 10
    assert spans(matcher.match(tokens_of(PAGE + 15, 40))) == [("kept 5", 0, 40, 0)]
    closed = PassageMatcher(shelf.catalog)
    closed.close()
    closed.catch_up()
    assert len(closed) == 0


def test_many_commits_leave_few_tables(shelf: Shelf) -> None:
    """Each is found at once; when it is time, the matcher asks to be put in order."""
    asked = 0
    for number in range(40):
        shelf.put("handbook", str(number), [tokens_of(number, 60)])
        assert spans(shelf.matcher.match(tokens_of(number, 60))) == [(f"{number} 0", 0, 60, 0)]
        assert shelf.matcher._indexes[DEFAULT_TENANT].num_tables <= MAX_TABLES + 1
        if shelf.matcher.is_behind:
            asked += 1
            shelf.matcher.catch_up()
    assert 1 < asked < 20
    assert all(shelf.matcher.match(tokens_of(number, 60)) for number in range(40))


PASSAGE = st.tuples(st.integers(0, 5), st.integers(0, 60), st.integers(20, 160))
"""(text, where it begins in it, tokens): passages of one text overlap, or lie one in the other."""
PIECE = st.one_of(
    st.tuples(st.just("free"), st.integers(0, 5), st.integers(0, 40)),
    st.tuples(st.just("whole"), st.integers(0, 5), st.just(0)),
    st.tuples(st.just("part"), st.integers(0, 5), st.integers(0, 80)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PASSAGE, min_size=1, max_size=6, unique=True), st.lists(PIECE, max_size=8), st.integers(0, 99))
def test_whatever_is_there_is_found(
    tmp_path_factory: pytest.TempPathFactory,
    passages: list[tuple[int, int, int]],
    pieces: list[tuple[str, int, int]],
    seed: int,
) -> None:
    """Reference: every run of every passage at every place, compared one by one: what none of ours covers of it is too
    short to count; and all of a passage that shares its text with no other."""
    texts = [tokens_of(1000 * seed + text, 220) for text in range(6)]
    stored = [texts[text][start : start + length] for text, start, length in passages]
    prompt, whole = list[int](), list[tuple[int, int]]()
    for place, (kind, number, size) in enumerate(pieces):
        passage = stored[number % len(stored)]
        if kind == "free":
            prompt += tokens_of(1000 * seed + 500 + place, size)
        elif kind == "part":
            prompt += passage[size // 2 : size // 2 + size]
        else:
            alone = [text for text, _, _ in passages].count(passages[number % len(stored)][0]) == 1
            if alone and len(passage) >= MIN_TOKENS:
                whole.append((len(prompt), len(prompt) + len(passage)))
            prompt += passage
    with shelf_in(tmp_path_factory.mktemp("shelf")) as shelf:
        shelf.put("handbook", "a", stored[::2])
        shelf.put("other", "b", stored[1::2] or stored)
        matches = shelf.matcher.match(prompt)
    check(prompt, matches)
    covered = np.zeros(len(prompt), bool)
    for each in matches:
        covered[each.start : each.start + each.num_tokens] = True
    for passage in stored:
        for start, end in runs_by_hand(prompt, passage):
            least = max(MIN_TOKENS, MIN_SHARE * len(passage))
            assert longest_stretch(~covered[start:end]) < least, (start, end)
    for start, end in whole:
        assert covered[start:end].all()


def runs_by_hand(prompt: Tokens, passage: Tokens) -> Iterator[tuple[int, int]]:
    for offset in range(-len(passage), len(prompt)):
        begin = None
        for place in range(max(0, offset), min(len(prompt), offset + len(passage)) + 1):
            equal = place < min(len(prompt), offset + len(passage)) and prompt[place] == passage[place - offset]
            if equal and begin is None:
                begin = place
            if not equal and begin is not None:
                if place - begin >= MIN_TOKENS:
                    yield begin, place
                begin = None


def longest_stretch(flags: np.ndarray) -> int:
    longest = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return longest
