"""What a prompt shares with passages, at first sight: how little is looked at, and that nothing is missed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kvblend.retriever.matching.gram_index import MAX_CANDIDATES, Candidate, GramIndex
from kvblend.retriever.matching.gram_table import MAX_HOLDERS, GramTable
from kvblend.retriever.matching.grams import GRAM_TOKENS, STRIDE, gram_hashes, strided_grams

Tokens = NDArray[np.int64]


def random_tokens(rng: np.random.Generator, count: int) -> Tokens:
    return rng.integers(0, 50_000, count)


def test_a_gram_has_one_hash_wherever_it_stands() -> None:
    """Reference: each gram hashed alone. Ours: all of a text's at once, and a passage's in front of others."""
    rng = np.random.default_rng(0)
    passages = [random_tokens(rng, length) for length in (15, 16, 33, 100, 0, 50)]
    hashes, counts = strided_grams(passages)
    assert counts.tolist() == [0, 1, 2, 5, 0, 3]
    alone = [
        gram_hashes(passage[start : start + GRAM_TOKENS])[0]
        for passage in passages
        for start in range(0, len(passage) - GRAM_TOKENS + 1, STRIDE)
    ]
    assert hashes.tolist() == alone and len(set(alone)) == len(alone)
    assert gram_hashes(passages[3])[::STRIDE].tolist() == hashes[3:8].tolist()
    assert len(gram_hashes(passages[0])) == 0 and len(strided_grams([])[0]) == 0


@given(st.lists(st.integers(0, 40), max_size=60), st.lists(st.integers(0, 40), max_size=60), st.data())
def test_a_table_finds_what_was_put_first(first: list[int], second: list[int], data: st.DataObject) -> None:
    """Reference: a list. Ours: two tables in one; of a hash that more have, the first `MAX_HOLDERS`."""
    stored = [own << 58 | own for own in [*first, *second]]  # neighbours in few buckets
    hashes, numbers = np.array(stored, np.uint64), np.arange(len(stored)).astype(np.uint32)
    cut = len(first)
    table = GramTable.of(hashes[:cut], numbers[:cut]).merged(GramTable.of(hashes[cut:], numbers[cut:]))
    wanted = data.draw(st.lists(st.integers(0, 63).map(lambda own: own << 58 | own), max_size=20))
    places, found = table.find(np.array(wanted, np.uint64))
    expected = [
        (place, number)
        for place, each in enumerate(wanted)
        for number in [n for n, own in enumerate(stored) if own == each][:MAX_HOLDERS]
    ]
    assert sorted(zip(places.tolist(), found.tolist(), strict=True)) == expected


def test_work_follows_what_the_prompt_holds_not_the_store() -> None:
    """Of 4,096 passages that begin with the same 100 tokens, a prompt of ten has those ten looked at first, and of the
    others as many as a few tables keep."""
    rng = np.random.default_rng(1)
    same = random_tokens(rng, 100)
    passages = [np.concatenate((same, random_tokens(rng, 200))) for _ in range(4096)]
    index = GramIndex()
    for start in range(0, len(passages), 256):
        index.add([(str(number), passages[number]) for number in range(start, start + 256)])
        while index.merge():
            pass
    held = [17, 4000, 5, 999, 2048, 3, 1234, 3333, 77, 2500]
    prompt = np.concatenate([part for number in held for part in (random_tokens(rng, 9), passages[number])])
    found = index.candidates(prompt)
    expected = [Candidate(str(number), 9 + place * 309) for place, number in enumerate(held)]
    assert sorted(found[: len(held)]) == sorted(expected)
    assert len(found) <= len(held) * (1 + 3 * MAX_HOLDERS)
    # 7 or 8 holders of the grams that all share, and 12 grams of its own: 16 to 20 bytes each
    assert index.num_bytes < 20 * len(passages) * (1 + 200 / STRIDE) + 100_000


@pytest.mark.parametrize("tokens", [[7], [7, 8]])
def test_repetition_is_bounded(tokens: list[int]) -> None:
    index = GramIndex()
    index.add([(str(length), np.array(tokens * length)) for length in range(40, 300)])
    assert 0 < len(index.candidates(np.array(tokens * 4096))) <= MAX_CANDIDATES


def test_what_is_added_is_found_at_once_and_after_merges() -> None:
    """Passages are added while tables are merged; a passage that is there already is not taken again."""
    rng = np.random.default_rng(2)
    index, passages = GramIndex(), [random_tokens(rng, 60) for _ in range(50)]
    assert index.candidates(passages[0]) == [] and not index.merge()
    for number, passage in enumerate(passages):
        index.add([(str(number), passage), ("0", passages[0])])
        assert index.candidates(passage) == [Candidate(str(number), 0)]
        if number % 7 == 0:
            index.merge()
    while index.merge():
        pass
    assert len(index) == len(passages)
    for number, passage in enumerate(passages):
        assert index.candidates(passage[5:]) == [Candidate(str(number), -5)]
