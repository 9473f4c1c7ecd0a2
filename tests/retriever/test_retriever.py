"""What an ingest computes, what a search sees meanwhile, and what a crash leaves."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

import tests.retriever.ingest_until_killed as crash
from kvblend.core.errors import ConflictError, InvalidRequestError, NotFoundError, UnsupportedDocumentError
from kvblend.retriever import Database, Embedder, Retriever
from tests.retriever.ingest_until_killed import COLLECTION, HashEmbedder, make_text

NUM_KILLS = 30


class CountingEmbedder(Embedder):
    """Counts the texts that it embeds."""

    num_texts = 0

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.num_texts += len(texts)
        return super().encode(texts)


def ingest(retriever: Retriever, document_id: str, text: str, *, collection: str = "c") -> None:
    retriever.commit_document(retriever.plan_ingest(collection, text, document_id=document_id))


def brute_force(retriever: Retriever, collection: str, query: str, *, top_k: int) -> dict[str, float]:
    """The best passages by the vectors in the catalog: passage id to cosine."""
    catalog = retriever.catalog
    rows = {
        passage.passage_id: passage.row
        for document in catalog.list_documents(collection)
        for passage in catalog.document_passages(collection, document.id)
    }
    vectors = catalog.vectors(list(rows.values()))
    wanted = retriever.embedder.encode_query(query)
    scores = {passage_id: float(vectors[row] @ wanted) for passage_id, row in rows.items()}
    return dict(sorted(scores.items(), key=lambda item: -item[1])[:top_k])


def assert_search_is_exact(retriever: Retriever, collection: str, queries: Sequence[str]) -> None:
    for query in queries:
        hits = retriever.search(collection, query, top_k=5, mode="vector")
        expected = brute_force(retriever, collection, query, top_k=5)
        assert [hit.score for hit in hits] == pytest.approx(list(expected.values()), abs=1e-5)
        assert len({hit.passage_id for hit in hits}) == len(hits)


def test_an_unchanged_document_computes_nothing_and_a_changed_one_only_what_changed(
    tmp_path: Path, tokenizer: Tokenizer, embedding_model_path: Path
) -> None:
    embedder = CountingEmbedder(embedding_model_path)
    retriever = Retriever(tmp_path, embedder=embedder, tokenizer=tokenizer)
    retriever.catalog.create_collection("c", passage_tokens=64)
    sections = [make_text(random.Random(number)) for number in range(8)]
    text = "\n\n".join(f"# Part {number}\n\n{section}" for number, section in enumerate(sections))
    plan = retriever.plan_ingest("c", text, name="a.md", metadata={"page": 1})
    assert (plan.kept, plan.dropped, plan.unchanged) == ((), (), False)
    retriever.commit_document(plan)
    assert embedder.num_texts == len(plan.new) == len(plan.new_passages) > 20

    again = retriever.plan_ingest("c", text, name="a.md", metadata={"page": 2})
    assert again.unchanged
    assert (again.new, again.kept, again.dropped) == ((), plan.new, ())
    assert again.passages == plan.passages
    assert retriever.commit_document(again).document.metadata == {"page": 2}
    assert embedder.num_texts == len(plan.new)

    changed = retriever.plan_ingest("c", text.replace("# Part 3\n\n", "# Part 3\n\nA new beginning. "), name="a.md")
    assert 1 <= len(changed.new) <= 4
    result = retriever.commit_document(changed)
    assert (result.new, result.kept, set(result.dropped)) == (changed.new, changed.kept, set(changed.dropped))
    assert embedder.num_texts == len(plan.new) + len(changed.new)
    assert "A new beginning" in retriever.search("c", "A new beginning", top_k=1)[0].text
    retriever.check_integrity()
    retriever.close()


def test_a_passage_of_two_documents_is_stored_found_and_deleted_once(retriever: Retriever) -> None:
    ingest(retriever, "one", "Shared words of both.")
    ingest(retriever, "two", "Shared words of both.")
    (hit,) = retriever.search("c", "shared words", top_k=8)
    assert (hit.document_id, hit.document_name, hit.text) == ("one", "one", "Shared words of both.")
    assert list(hit.token_ids) == retriever.tokenizer.encode_passage(hit.text)
    assert retriever.delete_document("c", "one") == []
    (hit,) = retriever.search("c", "shared words", top_k=8)
    assert hit.document_id == "two"
    assert retriever.delete_document("c", "two") == [hit.passage_id]
    assert retriever.search("c", "shared words", top_k=8) == []


def test_the_old_version_is_found_until_the_commit(retriever: Retriever) -> None:
    ingest(retriever, "d", "Old words.")
    plan = retriever.plan_ingest("c", "New words.", document_id="d")
    assert [hit.text for hit in retriever.search("c", "words", top_k=8)] == ["Old words."]
    retriever.commit_document(plan)
    assert [hit.text for hit in retriever.search("c", "words", top_k=8)] == ["New words."]


def test_a_plan_holds_after_what_it_kept_was_deleted(retriever: Retriever) -> None:
    ingest(retriever, "one", "Kept words.")
    plan = retriever.plan_ingest("c", "Kept words.", document_id="two")
    assert plan.new == ()
    retriever.delete_document("c", "one")
    result = retriever.commit_document(plan)
    assert (result.new, result.kept) == (tuple(passage.passage_id for passage in plan.passages), ())


def test_collections_are_apart_and_go_as_a_whole(retriever: Retriever) -> None:
    retriever.catalog.create_collection("other", passage_tokens=64)
    ingest(retriever, "d", "Same words.")
    ingest(retriever, "d", "Same words.", collection="other")
    (passage_id,) = retriever.delete_collection("other")
    assert retriever.catalog.places_of([("", passage_id), ("other", passage_id)]) == {("c", "", passage_id)}
    assert len(retriever.search("c", "words", top_k=3)) == 1
    with pytest.raises(NotFoundError):
        retriever.search("other", "words", top_k=3)
    retriever.catalog.create_collection("other", passage_tokens=64)
    assert retriever.search("other", "words", top_k=3) == []


def test_document_ids_are_any_string_but_a_file_name(retriever: Retriever, tmp_path: Path) -> None:
    ids = ["../../etc/passwd", "a/b", "\u00e9\U0001f600" * 200, "'; DROP TABLE documents; --", " "]
    for document_id in ids:
        ingest(retriever, document_id, f"Words of {ids.index(document_id)}.")
    assert [document.id for document in retriever.catalog.list_documents("c")] == sorted(ids)
    assert {path.name for path in tmp_path.rglob("*") if path.suffix != ".part"} <= {
        "data", "indexes", "catalog.sqlite3", "catalog.sqlite3-wal", "catalog.sqlite3-shm", "1", "owner", "parts.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("data", "arguments", "error", "message"),
    [
        ("  \n\n ", {}, InvalidRequestError, "has no text"),
        ("", {}, InvalidRequestError, "has no text"),
        (b"<html><script>x</script></html>", {"media_type": "text/html"}, InvalidRequestError, "has no text"),
        ("x", {"document_id": ""}, InvalidRequestError, "id has 1 to 512 characters, not 0"),
        ("x", {"document_id": "x" * 513}, InvalidRequestError, "not 513"),
        ("x", {"document_id": "d", "name": "a\0b"}, InvalidRequestError, "name holds a character"),
        ("a\ud800", {}, InvalidRequestError, "lone surrogate"),
        ("x", {"metadata": {"a": float("nan")}}, InvalidRequestError, "metadata must be JSON"),
        (b"x", {"name": "a.exe"}, UnsupportedDocumentError, "does not tell"),
        (b"%PDF-1.7 broken", {"name": "a.pdf"}, UnsupportedDocumentError, "not a PDF that can be read"),
        ("x", {"collection": "no"}, NotFoundError, "no collection 'no'"),
    ],
)
def test_what_cannot_be_ingested_changes_nothing(
    retriever: Retriever, data: str | bytes, arguments: dict[str, str], error: type[Exception], message: str
) -> None:
    collection = arguments.pop("collection", "c")
    with pytest.raises(error, match=message):
        retriever.plan_ingest(collection, data, **arguments)  # type: ignore[arg-type]
    assert retriever.catalog.get_collection("c").num_documents == 0


def test_another_embedding_model_is_refused(retriever: Retriever, tmp_path: Path, tokenizer: Tokenizer) -> None:
    class OtherEmbedder(HashEmbedder):
        fingerprint = "other words"

    ingest(retriever, "d", "Some words.")
    other = Retriever(tmp_path / "data", embedder=OtherEmbedder(), tokenizer=tokenizer)
    with pytest.raises(ConflictError, match="another embedding model"):
        other.search("c", "words", top_k=1)
    with pytest.raises(ConflictError, match="another embedding model"):
        ingest(other, "e", "More words.")
    other.catalog.close()


def test_two_retrievers_on_one_folder_see_each_other(
    retriever: Retriever, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    other = Retriever(tmp_path / "data", embedder=HashEmbedder(), tokenizer=tokenizer)
    ingest(retriever, "d", "First words.")
    assert len(other.search("c", "words", top_k=4)) == 1
    ingest(other, "e", "Second words.")
    assert len(retriever.search("c", "words", top_k=4)) == 2
    other.delete_document("c", "d")
    assert [hit.document_id for hit in retriever.search("c", "words", top_k=4)] == ["e"]
    other.close()


@pytest.mark.parametrize("damage", ["missing", "torn", "flipped", "unwritten", "empty", "stale"])
def test_a_damaged_index_file_is_made_up_from_the_catalog(tmp_path: Path, tokenizer: Tokenizer, damage: str) -> None:
    def open_retriever() -> Retriever:
        return Retriever(tmp_path, embedder=HashEmbedder(), tokenizer=tokenizer)

    retriever = open_retriever()
    retriever.catalog.create_collection("c", passage_tokens=64)
    for number in range(10):
        ingest(retriever, f"d{number}", make_text(random.Random(number)))
    retriever.close()
    (file,) = tmp_path.glob("indexes/1/*.part")
    good = file.read_bytes()
    place = 4096 + 256 * 16 + 5 * 32 * 4  # the sixth vector, of 32 floats, behind 256 rows and digests
    assert good[place : place + 4] != bytes(4)
    match damage:
        case "missing":
            file.unlink()
        case "torn":
            file.write_bytes(good[: len(good) // 2])
        case "flipped":
            file.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        case "unwritten":  # a page that a power cut kept from the disk
            file.write_bytes(good[:4096] + bytes(5 * 8) + good[4096 + 5 * 8 :])
        case "empty":
            file.write_bytes(b"")
        case "stale":
            retriever = open_retriever()
            retriever.delete_document("c", "d3")
            ingest(retriever, "d4", make_text(random.Random(99)))
            retriever.close()
            file.write_bytes(good)
    retriever = open_retriever()
    retriever.check_integrity()
    assert_search_is_exact(retriever, "c", ["w1 w2 w3", "w77"])
    retriever.close()


def test_deleted_passages_leave_the_index_file(tmp_path: Path, tokenizer: Tokenizer) -> None:
    retriever = Retriever(tmp_path, embedder=HashEmbedder(), tokenizer=tokenizer)
    retriever.catalog.create_collection("c", passage_tokens=64)
    ingest(retriever, "d", "Secret words.")
    ingest(retriever, "e", "Other words.")
    secret = HashEmbedder().encode(["Secret words."])[0].tobytes()
    (file,) = tmp_path.glob("indexes/1/*.part")
    assert secret in file.read_bytes()
    retriever.delete_document("c", "d")
    assert secret not in file.read_bytes()
    retriever.close()
    assert secret not in file.read_bytes()


def test_searches_go_on_while_documents_go_in(retriever: Retriever) -> None:
    """Each search sees one version of a document."""
    ingest(retriever, "fixed", "Steady words that stay.")
    stop = threading.Event()

    def search() -> int:
        num_searches = 0
        while not stop.is_set():
            hits = retriever.search("c", "steady words that stay", top_k=64, mode="vector")
            num_searches += 1
            assert hits[0].text == "Steady words that stay."
            versions = {hit.metadata["version"] for hit in hits if hit.document_id == "moving"}
            assert len(versions) <= 1
        return num_searches

    def write(number: int) -> None:
        for version in range(12):
            document_id = "moving" if number == 0 else f"d{number}"
            text = make_text(random.Random(100 * number + version))
            plan = retriever.plan_ingest("c", text, document_id=document_id, metadata={"version": version})
            retriever.commit_document(plan)
            if version % 5 == 4 and number:
                retriever.delete_document("c", document_id)

    with ThreadPoolExecutor(5) as pool:
        searchers = [pool.submit(search) for _ in range(2)]
        for writer in [pool.submit(write, number) for number in range(3)]:
            writer.result()
        stop.set()
        assert all(searcher.result() > 5 for searcher in searchers)
    assert_search_is_exact(retriever, "c", ["w1 w2 w3", "steady words"])


def test_a_search_does_not_wait_for_an_ingest(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """The ingest is held up while it embeds; searches are answered all the same, from the old version."""
    embedding, go_on = threading.Event(), threading.Event()

    class HeldEmbedder(HashEmbedder):
        def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
            embedding.set()
            assert go_on.wait(timeout=60)
            return super().encode(texts)

        def encode_query(self, query: str) -> NDArray[np.float32]:
            vector: NDArray[np.float32] = super().encode([query])[0]
            return vector

    retriever = Retriever(tmp_path, embedder=HeldEmbedder(), tokenizer=tokenizer)
    retriever.catalog.create_collection("c", passage_tokens=64)
    go_on.set()
    ingest(retriever, "d", "Old words.")
    go_on.clear()
    embedding.clear()
    with ThreadPoolExecutor(1) as pool:
        ingesting = pool.submit(ingest, retriever, "d", "New words.")
        assert embedding.wait(timeout=60)
        assert [hit.text for hit in retriever.search("c", "words", top_k=4)] == ["Old words."]
        assert not ingesting.done()
        go_on.set()
        ingesting.result()
    assert [hit.text for hit in retriever.search("c", "words", top_k=4)] == ["New words."]
    retriever.close()


def test_a_killed_ingest_leaves_a_sound_whole(tmp_path: Path, tokenizer: Tokenizer, tokenizer_file: Path) -> None:
    """Kill a process mid-ingest again and again: what it had committed is there, and search is exact."""
    retriever = Retriever(tmp_path, embedder=HashEmbedder(), tokenizer=tokenizer)
    retriever.catalog.create_collection(COLLECTION, passage_tokens=64)
    retriever.close()
    rng = random.Random(7)
    num_commits = 0
    committed: dict[str, str] = {}
    process = subprocess.Popen(
        [sys.executable, crash.__file__, str(tmp_path), str(tokenizer_file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    for seed in range(NUM_KILLS):
        process.stdin.write(f"{seed}\n")
        process.stdin.flush()
        ready, process_id = process.stdout.readline().split()
        assert ready == "ready"
        lines = [process.stdout.readline() for _ in range(rng.randrange(8))]
        time.sleep(rng.uniform(0.0, 0.03))  # into the next ones
        os.kill(int(process_id), signal.SIGKILL)
        lines += iter(process.stdout.readline, "dead\n")
        written = [tuple(line.split()) for line in lines[:-1]]  # the last is what the kill cut off, if anything
        num_commits += len(written)
        committed |= dict(pair for pair in written if len(pair) == 2)

        retriever = Retriever(tmp_path, embedder=HashEmbedder(), tokenizer=tokenizer)
        retriever.check_integrity()
        present = {
            document.id: retriever.catalog.document_passages(COLLECTION, document.id)[0].text.split()[0]
            for document in retriever.catalog.list_documents(COLLECTION)
        }
        # The write that was under way may or may not have been committed; all before it were.
        expected = {document_id: word for document_id, word in committed.items() if word != "-"}
        assert len(expected.items() ^ present.items()) <= 2
        assert len(expected.keys() ^ present.keys()) <= 1
        committed = dict(present)
        assert_search_is_exact(retriever, COLLECTION, ["w1 w2 w3", "w77"])
        if seed % 3 == 0:
            retriever.close()
        else:
            retriever.catalog.close()
    process.stdin.close()
    assert process.wait() == 0
    process.stdout.close()
    assert num_commits > NUM_KILLS


@pytest.mark.parametrize("metadata", [{"x": "\ud800"}, {"\ud800": 1}, {"x": ["a", {"y": "\udfff"}]}])
def test_metadata_that_is_no_text_never_enters_the_catalog(retriever: Retriever, metadata: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="metadata holds half a surrogate pair"):
        retriever.plan_ingest("c", "A text.", document_id="a", metadata=metadata)
    with pytest.raises(UnicodeEncodeError):
        retriever.catalog.put_value("any", metadata)


def test_metadata_of_an_earlier_version_that_is_no_text_is_mended(retriever: Retriever) -> None:
    retriever.commit_document(retriever.plan_ingest("c", "A text.", document_id="a", metadata={"b": "\U0001f600"}))
    stored = r'{"\ud800": 1, "x": ["\udfff", "\ud83d\ude00"]}'
    with retriever.catalog._database.write() as connection:
        connection.execute("UPDATE documents SET metadata = ?", (stored,))
    (document,) = retriever.catalog.list_documents("c")
    assert document.metadata == {"?": 1, "x": ["?", "\U0001f600"]}


def test_a_search_counts_nothing(retriever: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it costs does not grow with what the collection holds; negative control: the check that does count."""
    retriever.commit_document(retriever.plan_ingest("c", "The bridge of Vik.", document_id="a"))
    statements: list[str] = []
    connect = Database._connect

    def traced(database: Database) -> sqlite3.Connection:
        connection = connect(database)
        connection.set_trace_callback(statements.append)
        return connection

    monkeypatch.setattr(Database, "_connect", traced)
    retriever.catalog._database._idle.clear()
    retriever.search("c", "bridge", top_k=1)
    retriever.plan_ingest("c", "The bridge of Vik.", document_id="a")
    retriever.catalog.collection_settings("c"), retriever.catalog.list_settings()
    retriever.catalog.get_collection("c"), retriever.catalog.list_collections()
    assert statements and not [statement for statement in statements if "count(*)" in statement]
    retriever.check_integrity()
    assert [statement for statement in statements if "count(*)" in statement]
