"""What is found by words: any text is a query, and no other collection weighs in its ranks."""

import sqlite3
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from kvblend.retriever import Catalog, Retriever
from kvblend.retriever.word_table import WordsState
from tests.retriever.ingest_until_killed import HashEmbedder

SYNTAX = st.text(st.sampled_from("\"*^():+-{}.,;'\\ANDORNOTEAR wb\0\n\ud800\u0301é字"), max_size=40)


def ingest(retriever: Retriever, document_id: str, text: str, *, collection: str = "c") -> None:
    retriever.commit_document(retriever.plan_ingest(collection, text, document_id=document_id))


def found(retriever: Retriever, query: str, *, collection: str = "c") -> list[str]:
    return [hit.document_id for hit in retriever.search(collection, query, top_k=8, mode="keyword")]


@given(query=SYNTAX | st.text(max_size=60))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_query_is_syntax(retriever: Retriever, query: str) -> None:
    if not retriever.catalog.list_documents("c"):
        ingest(retriever, "d", "The well of the bear.")
    assert found(retriever, query) in ([], ["d"])
    assert found(retriever, f"{query} well") == ["d"]


def test_words_are_found_in_any_form_and_rare_ones_weigh_more(retriever: Retriever) -> None:
    for number in range(8):
        ingest(retriever, f"common{number}", f"The bridges were opened on day {number}.")
    ingest(retriever, "rare", "The zeppelins came on a day of rain, and it was a long one, and nobody had seen such.")
    assert found(retriever, "zeppelin day")[0] == "rare"
    assert set(found(retriever, "opening BRIDGE")) == {f"common{number}" for number in range(8)}
    assert found(retriever, "submarine") == []


def test_a_common_word_counts_only_where_there_is_no_rarer_one(
    retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        ingest(retriever, f"d{number}", f"Lamps of kind{number}.")
    monkeypatch.setattr("kvblend.retriever.word_table.MAX_COMMON", 4)
    assert found(retriever, "lamp kind3") == ["d3"]
    assert len(found(retriever, "lamp")) == 5


def test_scores_are_bm25_best_first_and_no_other_collection_counts(retriever: Retriever) -> None:
    ingest(retriever, "one", "Alpha beta.")
    ingest(retriever, "two", "Alpha alpha gamma.")
    ingest(retriever, "three", "Delta.")
    ingest(retriever, "four", "Epsilon.")
    ingest(retriever, "five", "Zeta.")
    before = [(hit.document_id, hit.score) for hit in retriever.search("c", "alpha", top_k=8, mode="keyword")]
    assert [name for name, _ in before] == ["two", "one"]
    assert before[0][1] is not None and before[1][1] is not None and before[0][1] > before[1][1] > 0
    retriever.catalog.create_collection("other", passage_tokens=64)
    for number in range(20):
        ingest(retriever, str(number), f"Alpha {number}.", collection="other")
    assert [(hit.document_id, hit.score) for hit in retriever.search("c", "alpha", top_k=8, mode="keyword")] == before


def test_what_is_changed_or_deleted_is_found_no_more(retriever: Retriever) -> None:
    ingest(retriever, "d", "Old lamps.")
    ingest(retriever, "e", "A lamp that stays.")
    ingest(retriever, "d", "New mirrors.")
    assert (found(retriever, "lamp"), found(retriever, "mirror")) == (["e"], ["d"])
    retriever.delete_document("c", "d")
    assert found(retriever, "mirror") == []
    retriever.catalog.create_collection("gone", passage_tokens=64)
    ingest(retriever, "d", "A lamp elsewhere.", collection="gone")
    retriever.delete_collection("gone")
    retriever.catalog.create_collection("gone", passage_tokens=64)
    assert found(retriever, "lamp", collection="gone") == []


def test_keywords_need_no_embedding_model(tmp_path: Path, tokenizer: Tokenizer, retriever: Retriever) -> None:
    class Other(HashEmbedder):
        fingerprint = "another"

    ingest(retriever, "d", "Old lamps.")
    other = Retriever(tmp_path / "data", embedder=Other(), tokenizer=tokenizer)
    assert found(other, "lamp") == ["d"]
    other.close()


@pytest.mark.parametrize("begun", [False, True])
def test_passages_from_before_there_were_word_indexes_are_indexed_in_batches(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """`begun`: an earlier start had indexed some of them, and was cut off."""
    retriever = Retriever(tmp_path, embedder=HashEmbedder(), tokenizer=tokenizer)
    retriever.catalog.create_collection("c", passage_tokens=64)
    for number in range(20):
        ingest(retriever, f"d{number}", f"Word{number} of a text.")
    retriever.close()
    with sqlite3.connect(tmp_path / "catalog.sqlite3") as connection:
        if begun:
            connection.execute("DELETE FROM words_1 WHERE rowid > 7")
        else:
            connection.execute("DROP TABLE words_1")
        connection.execute("UPDATE collections SET words = ?", (WordsState.MISSING,))
    connection.close()
    monkeypatch.setattr("kvblend.retriever.word_upkeep.WORDS_BATCH", 6)
    retriever = Retriever(tmp_path, embedder=HashEmbedder(), tokenizer=tokenizer)
    assert found(retriever, "word7 word19") == ["d7", "d19"]
    retriever.check_integrity()
    retriever.close()


def test_deleted_words_are_merged_out_at_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where SQLite only marks what is deleted, and the process ended before the merge."""
    from tests.retriever.test_catalog import make_document, make_vectors

    monkeypatch.setattr("kvblend.retriever.word_table.FORGETS_AT_ONCE", False)
    monkeypatch.setattr("kvblend.retriever.word_upkeep.FORGETS_AT_ONCE", False)
    from kvblend.retriever import PassageText

    catalog = Catalog(tmp_path / "catalog.sqlite3")
    catalog.create_collection("c", passage_tokens=64)
    for number in range(40):
        passage = PassageText(f"plain{number} words", (number,))
        catalog.put_document("c", make_document(f"d{number}"), [passage], make_vectors([passage]))
    secret = PassageText("quixotry", (1, 2, 3))
    catalog.put_document("c", make_document("secret"), [secret], make_vectors([secret]))
    with monkeypatch.context() as before_the_merge:
        before_the_merge.setattr("kvblend.retriever.catalog.forget_words", lambda database: None)
        catalog.delete_document("c", "secret")
    catalog.close()
    catalog = Catalog(tmp_path / "catalog.sqlite3")
    catalog.check_integrity()
    catalog._database.forget_deleted()
    assert not any(b"quixot" in file.read_bytes() for file in tmp_path.glob("catalog.sqlite3*"))
    catalog.close()
