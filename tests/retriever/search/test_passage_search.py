"""Rankings fused, scores that are too low left out, and neighbors brought along."""

import pytest

from kvblend.core.rest import SearchMode
from kvblend.retriever import Retriever
from kvblend.retriever.search.passage_search import fuse


def ingest(retriever: Retriever, document_id: str, text: str) -> None:
    retriever.commit_document(retriever.plan_ingest("c", text, document_id=document_id))


def test_rankings_are_fused_by_reciprocal_rank() -> None:
    """By hand: 7 has 1/62 + 1/61, 5 has 1/61 + 1/63, the others one rank each."""
    assert fuse([[5, 7, 9], [7, 8, 5]]) == [7, 5, 8, 9]
    assert fuse([[1], [2]]) == [1, 2]
    assert fuse([[], [3, 4]]) == [3, 4]
    assert fuse([]) == []


@pytest.fixture
def filled(retriever: Retriever) -> Retriever:
    """Ten documents; one alone has a rare word, which its vector hides among others."""
    for number in range(9):
        ingest(retriever, f"d{number}", f"Who signs the report? Somebody signs it on day {number}.")
    ingest(retriever, "rare", "Of the many things told here none but zeppelins matters to whoever comes this far.")
    return retriever


def test_hybrid_finds_what_either_does_and_scores_are_cosines(filled: Retriever) -> None:
    question = "zeppelin unheard"
    hits = filled.search("c", question, top_k=3)
    near = filled.search("c", question, top_k=10, mode="vector")
    assert "rare" not in {hit.document_id for hit in near[:3]}
    assert "rare" in {hit.document_id for hit in hits}
    cosines = {hit.passage_id: hit.score for hit in near}
    for hit in hits:
        assert hit.score == pytest.approx(cosines[hit.passage_id], abs=1e-5)


@pytest.mark.parametrize("mode", ["hybrid", "vector", "keyword"])
def test_what_scores_too_low_is_left_out(filled: Retriever, mode: SearchMode) -> None:
    question = "Who signs the report on zeppelins?"
    hits = filled.search("c", question, top_k=10, mode=mode)
    scores = sorted(hit.score for hit in hits if hit.score is not None)
    bound = scores[-1]
    kept = filled.search("c", question, top_k=10, mode=mode, min_score=bound)
    assert {hit.passage_id for hit in kept} == {hit.passage_id for hit in hits if (hit.score or 0) >= bound}
    assert 0 < len(kept) < len(hits)
    assert filled.search("c", question, top_k=10, mode=mode, min_score=1000.0) == []


def story(*, of: str) -> str:
    """Eight sections, each a passage of its own."""
    filler = "It goes on for a while about this and about that, so that the passage is full and the next one begins. "
    return "\n\n".join(f"# Part {number}\n\nThe {of}{number} appears. {filler * 2}" for number in range(8))


def test_neighbors_come_along_in_their_documents_order(retriever: Retriever) -> None:
    ingest(retriever, "one", story(of="apple"))
    ingest(retriever, "two", story(of="pear"))
    places = {
        passage.passage_id: (name, position)
        for name in ("one", "two")
        for position, passage in enumerate(retriever.catalog.document_passages("c", name))
    }

    def found(query: str, *, top_k: int, neighbors: int) -> list[tuple[str, int, bool]]:
        hits = retriever.search("c", query, top_k=top_k, mode="keyword", neighbors=neighbors)
        assert [(hit.document_id, hit.position) for hit in hits] == [places[hit.passage_id] for hit in hits]
        return [(hit.document_id, hit.position, hit.score is None) for hit in hits]

    ((name, at, _),) = found("apple4", top_k=1, neighbors=0)
    assert name == "one"
    assert found("apple4", top_k=1, neighbors=1) == [("one", at - 1, True), ("one", at, False), ("one", at + 1, True)]
    ((_, first, _),) = found("apple0", top_k=1, neighbors=0)
    assert found("apple0", top_k=1, neighbors=2)[0] == ("one", first, False) or first > 0
    together = found("pear5 pear5 apple4 apple6", top_k=3, neighbors=1)
    assert len({(name, at) for name, at, _ in together}) == len(together)
    assert sum(not is_neighbor for _, _, is_neighbor in together) == 3
    for name in ("one", "two"):
        positions = [at for document, at, _ in together if document == name]
        assert positions == sorted(positions)
    names = [name for name, _, _ in together]
    assert names == sorted(names) or names == sorted(names, reverse=True)


def test_a_neighbor_that_was_found_itself_comes_once_with_its_score(retriever: Retriever) -> None:
    ingest(retriever, "one", story(of="apple"))
    hits = retriever.search("c", "apple2 apple3", top_k=2, mode="keyword", neighbors=8)
    assert len({hit.passage_id for hit in hits}) == len(hits) == 8
    assert [hit.position for hit in hits] == list(range(8))
    assert sum(hit.score is not None for hit in hits) == 2
