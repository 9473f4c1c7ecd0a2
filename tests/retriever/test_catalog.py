"""The catalog against a model of it in plain dictionaries, and its errors."""

import sqlite3
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from kvblend.core.errors import ConflictError, NotFoundError
from kvblend.core.identity import token_hash
from kvblend.retriever import Catalog, NewDocument, PassageText
from kvblend.retriever.passage_table import MissingVectorsError
from kvblend.retriever.records import Place
from kvblend.retriever.schema import SCHEMA
from kvblend.retriever.word_table import find_words

NAMES = st.sampled_from(["a", "b"])
DOCUMENT_IDS = st.sampled_from(["d", "../e", "\u00e9 f" * 20])


def make_passage(number: int) -> PassageText:
    return PassageText(f"text {number}", (number, number + 1, 2**31 - 1))


def context_of(numbers: list[int], position: int) -> str:
    """What the caller calls the place of a passage: here, all that precedes it in its document."""
    return " ".join(map(str, numbers[:position]))


def make_document(document_id: str, *, content_hash: str = "h") -> NewDocument:
    return NewDocument(document_id, f"name of {document_id}", "text/plain", content_hash, {"page": 1})


def make_vectors(passages: list[PassageText]) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float32]]]:
    return {passage.passage_id: np.full(4, passage.token_ids[0], dtype=np.float32) for passage in passages}


class CatalogMachine(RuleBasedStateMachine):
    """Reference: dictionaries of lists of passage numbers. Ours: the catalog, closed and opened at random."""

    passages = Bundle("passages")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.catalog = Catalog(Path(self.folder.name) / "catalog.sqlite3")
        self.model: dict[str, dict[str, list[int]]] = {}

    def teardown(self) -> None:
        self.catalog.check_integrity()
        self.catalog.close()
        self.folder.cleanup()

    def held(self, name: str) -> set[int]:
        return {number for numbers in self.model[name].values() for number in numbers}

    @rule(name=NAMES)
    def create_collection(self, name: str) -> None:
        if name in self.model:
            with pytest.raises(ConflictError):
                self.catalog.create_collection(name, passage_tokens=64)
        else:
            record = self.catalog.create_collection(name, passage_tokens=64, settings={"x": [1]})
            assert (record.num_documents, record.num_passages, record.settings) == (0, 0, {"x": [1]})
            self.model[name] = {}

    @rule(name=NAMES, document_id=DOCUMENT_IDS, numbers=st.lists(st.integers(0, 6), min_size=1, max_size=6))
    def put_document(self, name: str, document_id: str, numbers: list[int]) -> None:
        passages = [make_passage(number) for number in numbers]
        if name not in self.model:
            with pytest.raises(NotFoundError):
                self.catalog.put_document(name, make_document(document_id), passages, make_vectors(passages))
            return
        before = self.held(name)
        needed = [make_passage(number) for number in dict.fromkeys(numbers) if number not in before]
        if needed:
            with pytest.raises(MissingVectorsError):
                self.catalog.put_document(name, make_document(document_id), passages, make_vectors(needed[:-1]))
        contexts = [context_of(numbers, position) for position in range(len(numbers))]
        change = self.catalog.put_document(name, make_document(document_id), passages, make_vectors(needed), contexts)
        self.model[name][document_id] = numbers
        after = self.held(name)
        assert set(change.new) == {make_passage(number).passage_id for number in after - before}
        assert set(change.dropped) == {make_passage(number).passage_id for number in before - after}
        assert (change.version != change.old_version) == (before != after)

    @rule(name=NAMES, document_id=DOCUMENT_IDS)
    def delete_document(self, name: str, document_id: str) -> None:
        if document_id not in self.model.get(name, {}):
            with pytest.raises(NotFoundError):
                self.catalog.delete_document(name, document_id)
            return
        before = self.held(name)
        change = self.catalog.delete_document(name, document_id)
        del self.model[name][document_id]
        assert set(change.dropped) == {make_passage(number).passage_id for number in before - self.held(name)}

    @rule(name=NAMES)
    def delete_collection(self, name: str) -> None:
        if name not in self.model:
            with pytest.raises(NotFoundError):
                self.catalog.delete_collection(name)
            return
        expected = {make_passage(number).passage_id for number in self.held(name)}
        assert set(self.catalog.delete_collection(name)) == expected
        del self.model[name]

    @rule()
    def reopen(self) -> None:
        self.catalog.close()
        self.catalog = Catalog(Path(self.folder.name) / "catalog.sqlite3")

    @invariant()
    def same_as_the_model(self) -> None:
        assert [record.name for record in self.catalog.list_collections()] == sorted(self.model)
        ids = [make_passage(number).passage_id for number in range(7)]
        for name, documents in self.model.items():
            record = self.catalog.get_collection(name)
            assert (record.num_documents, record.num_passages) == (len(documents), len(self.held(name)))
            assert [document.id for document in self.catalog.list_documents(name)] == sorted(documents)
            counts = {
                make_passage(number).passage_id: sum(number in numbers for numbers in documents.values())
                for number in self.held(name)
            }
            assert self.catalog.num_references(name, ids) == counts
            for document_id, numbers in documents.items():
                stored = self.catalog.document_passages(name, document_id)
                assert [PassageText(passage.text, passage.token_ids) for passage in stored] == [
                    make_passage(number) for number in numbers
                ]
                vectors = self.catalog.vectors([passage.row for passage in stored])
                assert all(vectors[passage.row][0] == passage.token_ids[0] for passage in stored)
        contexts = {
            context_of(numbers, position)
            for documents in self.model.values()
            for numbers in documents.values()
            for position in range(len(numbers))
        }
        assert self.catalog.places_of([(context, id) for context in {*contexts, "none"} for id in ids]) == {
            Place(name, context_of(numbers, position), make_passage(number).passage_id)
            for name, documents in self.model.items()
            for numbers in documents.values()
            for position, number in enumerate(numbers)
        }


CatalogMachine.TestCase.settings = settings(max_examples=12, stateful_step_count=20, deadline=None)
test_against_a_model = CatalogMachine.TestCase


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = Catalog(tmp_path / "catalog.sqlite3")
    catalog.create_collection("c", passage_tokens=64)
    return catalog


def test_a_document_keeps_its_facts(catalog: Catalog) -> None:
    passages = [make_passage(1), make_passage(2), make_passage(1)]
    catalog.put_document("c", make_document("d"), passages, make_vectors(passages))
    created = catalog.get_document("c", "d").created_at
    catalog.put_document("c", make_document("d", content_hash="other"), passages, {})
    document = catalog.get_document("c", "d")
    assert (document.name, document.content_hash, document.metadata) == ("name of d", "other", {"page": 1})
    assert (document.num_passages, document.num_tokens, document.created_at) == (3, 9, created)
    assert catalog.document_passages("c", "d")[0].passage_id == token_hash(passages[0].token_ids)


def test_documents_are_listed_in_parts(catalog: Catalog) -> None:
    passages = [make_passage(1)]
    for number in range(7):
        catalog.put_document("c", make_document(f"d{number}"), passages, make_vectors(passages))
    first = catalog.list_documents("c", limit=4)
    rest = catalog.list_documents("c", limit=4, after=first[-1].id)
    assert [document.id for document in [*first, *rest]] == [f"d{number}" for number in range(7)]


def test_values_are_kept_and_go_with_their_collection(catalog: Catalog) -> None:
    assert catalog.get_value("model") is None
    catalog.put_value("model", {"fingerprint": "f"})
    catalog.put_value("model", [1, 2], collection="c")
    catalog.put_value("model", [1, 2, 3], collection="c")
    assert (catalog.get_value("model"), catalog.get_value("model", collection="c")) == ({"fingerprint": "f"}, [1, 2, 3])
    catalog.delete_collection("c")
    catalog.create_collection("c", passage_tokens=64)
    assert catalog.get_value("model", collection="c") is None
    with pytest.raises(NotFoundError, match="no collection 'no'"):
        catalog.get_value("model", collection="no")


def test_deleted_text_leaves_the_disk(catalog: Catalog, tmp_path: Path) -> None:
    secret = PassageText("a secret that nobody else knows", (1, 2, 3))
    catalog.put_document("c", make_document("d"), [secret], make_vectors([secret]))
    files = list(tmp_path.glob("catalog.sqlite3*"))
    assert any(b"a secret that" in file.read_bytes() for file in files)
    assert any(b"secret" in file.read_bytes().replace(b"a secret that", b"") for file in files)  # of its word index
    catalog.delete_document("c", "d")
    assert not any(b"secret" in file.read_bytes() for file in tmp_path.glob("catalog.sqlite3*"))


def test_a_catalog_of_another_version_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    with catalog._database.write() as connection:
        connection.execute("PRAGMA user_version=99")
    with pytest.raises(RuntimeError, match="schema version 99"):
        Catalog(tmp_path / "catalog.sqlite3")


def test_a_catalog_of_the_first_version_is_taken_over(tmp_path: Path) -> None:
    """Its passages' places have no context."""
    with sqlite3.connect(tmp_path / "catalog.sqlite3") as old:
        added = ("num_documents", "num_passages", "words")
        counts = "".join(f",\n    {name} INTEGER NOT NULL DEFAULT 0" for name in added)
        first = SCHEMA.replace("    context TEXT NOT NULL DEFAULT '',\n", "").replace(counts, "")
        for statement in first.split(";"):
            if "places_by_context" not in statement and "document_sources" not in statement:
                old.execute(statement)
        old.execute("INSERT INTO collections VALUES (1, 'c', 64, '{}', 0, x'00')")
        old.execute("INSERT INTO documents VALUES (1, 1, 'd', 'd', 'text/plain', 'h', '{}', 1, 3, 0)")
        old.execute("INSERT INTO passages VALUES (1, 1, 'p', 'words', x'010000000200000003000000', x'0000803f')")
        old.execute("INSERT INTO document_passages VALUES (1, 0, 1)")
        old.execute("PRAGMA user_version=1")
    old.close()
    for _ in range(2):
        catalog = Catalog(tmp_path / "catalog.sqlite3")
        assert catalog.document_places("c", "d") == [Place("c", "", "p")]
        assert [passage.token_ids for passage in catalog.document_passages("c", "d")] == [(1, 2, 3)]
        record = catalog.get_collection("c")
        assert (record.num_documents, record.num_passages) == (1, 1)
        with catalog.reading("c") as reading:
            assert [row for row, _ in find_words(reading.connection, 1, "a word", top_k=3)] == [1]
        catalog.check_integrity()
        catalog.close()


def test_a_passage_found_has_the_contexts_of_all_its_places(catalog: Catalog) -> None:
    passage = make_passage(1)
    catalog.put_document("c", make_document("d"), [passage, passage], make_vectors([passage]), ["first", "second"])
    catalog.put_document("c", make_document("e"), [passage], {}, ["other"])
    (row,) = (found.row for found in catalog.document_passages("c", "e"))
    with catalog.reading("c") as reading:
        found = reading.found_passages([row])[row]
    assert (found.document.id, found.position) == ("d", 0)
    assert set(found.contexts) == {"first", "second", "other"} and found.contexts[-1] == "other"


def test_many_threads_write_and_read(catalog: Catalog) -> None:
    def work(number: int) -> None:
        for turn in range(15):
            passages = [make_passage(other) for other in range(number, number + 5 + turn % 3)]
            catalog.put_document("c", make_document(f"d{number}"), passages, make_vectors(passages))
            assert len(catalog.document_passages("c", f"d{number}")) == len(passages)
            if turn % 4 == 3:
                catalog.delete_document("c", f"d{number}")

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, range(12)))
    catalog.check_integrity()
    assert catalog.get_collection("c").num_documents == 12


def test_passages_are_found_by_id_in_every_collection(catalog: Catalog) -> None:
    one, other = make_passage(1), make_passage(2)
    catalog.create_collection("b", passage_tokens=64, settings={})
    catalog.put_document("c", make_document("d"), [one, other], make_vectors([one, other]), ["", "behind"])
    catalog.put_document("b", make_document("e"), [other], make_vectors([other]))
    held = catalog.find_passages([one.passage_id, other.passage_id, "missing"])
    assert list(held) == ["c", "b"]
    assert {name: set(found) for name, found in held.items()} == {
        "c": {one.passage_id, other.passage_id},
        "b": {other.passage_id},
    }
    found = held["c"][other.passage_id]
    assert (found.document.id, found.position, found.contexts) == ("d", 1, ("behind",))
    assert catalog.find_passages([]) == {}
