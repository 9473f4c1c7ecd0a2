"""The vector index against a plain reference: random changes, reopening, damage, deletion, and searches beside them."""

import random
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kvblend.retriever.catalog import Catalog
from kvblend.retriever.index import IndexKeeper, IndexSizes
from kvblend.retriever.packing import PassageText
from kvblend.retriever.records import CatalogChange, NewDocument

DIM = 32
SIZES = IndexSizes(tail=64, clustered=1024)


class Folder:
    """A catalog and its index, with documents put in and deleted, beside a dictionary of what should be there."""

    def __init__(self, path: Path, sizes: IndexSizes = SIZES) -> None:
        self.path, self.sizes = path, sizes
        path.mkdir(exist_ok=True)
        self.expected: dict[str, list[str]] = {}
        self.vectors: dict[str, NDArray[np.float32]] = {}
        self.open()
        self.catalog.create_collection("c", passage_tokens=64)

    def open(self) -> None:
        self.catalog = Catalog(self.path / "catalog.sqlite3")
        self.keeper = IndexKeeper(self.path / "indexes", self.catalog, self.sizes)

    def close(self) -> None:
        self.keeper.close()
        self.catalog.close()

    def put(self, document_id: str, names: list[str]) -> CatalogChange:
        passages = [PassageText(name, tuple(name.encode())) for name in names]
        vectors = {passage.passage_id: vector_of(passage.text) for passage in passages}
        document = NewDocument(document_id, document_id, "text/plain", "h", {})
        index = self.keeper.get(self.catalog.collection_state("c").key)
        with index.lock:
            index.follow(self.catalog.collection_state("c").version)
            change = self.catalog.put_document(
                "c", document, passages, vectors, prepare=lambda change: index.prepare(change, vectors)
            )
            index.settle()
        self.keeper.tend(index)
        self.expected[document_id] = names
        return change

    def delete(self, document_id: str) -> None:
        index = self.keeper.get(self.catalog.collection_state("c").key)
        with index.lock:
            index.follow(self.catalog.collection_state("c").version)
            self.catalog.delete_document("c", document_id, prepare=lambda change: index.prepare(change, {}))
            index.settle()
        self.keeper.tend(index)
        del self.expected[document_id]

    def search(
        self, query: NDArray[np.float32], top_k: int, allowed: set[int] | None = None
    ) -> list[tuple[str, float]]:
        with self.keeper.reading("c") as (reading, snapshot):
            hits = snapshot.search(query, top_k=top_k, allowed=allowed)
            found = reading.found_passages([row for row, _ in hits])
        return [(found[row].passage.text, score) for row, score in hits]

    def check(self) -> None:
        """The index holds what it should, is at the catalog's version, and finds the nearest."""
        names = {name for names in self.expected.values() for name in names}
        record = self.catalog.get_collection("c")
        assert (record.num_documents, record.num_passages) == (len(self.expected), len(names))
        self.catalog.check_integrity()
        query = vector_of("a query")
        best = sorted(((name, float(vector_of(name) @ query)) for name in names), key=lambda hit: -hit[1])[:5]
        assert [score for _, score in self.search(query, 5)] == pytest.approx([score for _, score in best], abs=1e-6)
        with self.keeper.reading("c") as (reading, snapshot):
            assert sorted(snapshot.rows()) == sorted(self.catalog.passage_rows(reading.state.key)[1])


def copy_files(source: Path, target: Path) -> None:
    """As they are at the moment; one that a merge deletes meanwhile is left out."""
    for file in sorted(source.rglob("*")):
        if file.is_file():
            (target / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                shutil.copyfile(file, target / file.relative_to(source))


def vector_of(name: str) -> NDArray[np.float32]:
    vector = np.random.default_rng(list(name.encode())).standard_normal(DIM).astype(np.float32)
    unit: NDArray[np.float32] = vector / np.linalg.norm(vector)
    return unit


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    folder = Folder(tmp_path / "data")
    yield folder
    folder.close()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 7), st.lists(st.integers(0, 400), max_size=90)),
        st.tuples(st.just("delete"), st.integers(0, 7), st.just([])),
        st.tuples(st.sampled_from(["reopen", "crash", "wait"]), st.just(0), st.just([])),
    ),
    max_size=25,
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_random_changes_and_reopenings_agree_with_a_plain_reference(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, list[int]]]
) -> None:
    """Whatever is put, deleted, merged, closed or copied away in the middle, as a kill would leave it."""
    path = tmp_path_factory.mktemp("random")
    folder = Folder(path / "0", IndexSizes(tail=32, clustered=100_000))
    for number, (step, document, names) in enumerate(steps):
        match step:
            case "put":
                folder.put(f"d{document}", [f"p{name}" for name in dict.fromkeys(names)])
            case "delete" if f"d{document}" in folder.expected:
                folder.delete(f"d{document}")
            case "wait":
                folder.keeper.wait()
            case "reopen":
                folder.close()
                folder.open()
            case "crash":
                copy_files(folder.path, path / str(number + 1))
                folder.close()
                folder.path = path / str(number + 1)
                folder.open()
        folder.check()
    folder.close()


def test_clusters_find_nearly_all_and_allowed_rows_are_exact(folder: Folder) -> None:
    rng = random.Random(0)
    for number in range(20):
        folder.put(f"d{number}", [f"p{number}.{each}" for each in range(100)])
    folder.keeper.wait()
    names = [name for names in folder.expected.values() for name in names]
    with folder.keeper.reading("c") as (reading, snapshot):
        assert any(view.clusters for view in snapshot.views) and len(snapshot.views) < 12
        rows = snapshot.rows().tolist()
    found = 0
    for number in range(20):
        query = vector_of(f"query {number}")
        best = sorted(names, key=lambda name: -float(vector_of(name) @ query))[:10]
        found += len(set(best) & {name for name, _ in folder.search(query, 10)})
        allowed = set(rng.sample(rows, 150))
        with folder.keeper.reading("c") as (reading, snapshot):
            texts = {row: found.passage.text for row, found in reading.found_passages(sorted(allowed)).items()}
            hits = snapshot.search(query, top_k=10, allowed=allowed)
        exact = sorted(allowed, key=lambda row: -float(vector_of(texts[row]) @ query))[:10]
        assert [row for row, _ in hits] == exact
    assert found / 200 >= 0.98
    assert folder.search(vector_of("q"), 10, allowed=set()) == []


def test_a_search_holds_its_moment_while_passages_are_deleted_and_waits_for_no_commit(folder: Folder) -> None:
    folder.put("d", [f"p{each}" for each in range(100)])
    query = vector_of("p7")
    secret = vector_of("p7").tobytes()
    index = folder.keeper.get(folder.catalog.collection_state("c").key)
    with folder.keeper.reading("c") as (reading, snapshot):
        folder.delete("d")
        folder.put("e", ["other"])
        ((row, score),) = snapshot.search(query, top_k=1)
        assert reading.found_passages([row])[row].passage.text == "p7" and score == pytest.approx(1)
    assert [name for name, _ in folder.search(query, 3)] == ["other"]
    folder.keeper.wait()
    assert not any(secret in path.read_bytes() for path in folder.path.glob("indexes/*/*.part"))
    with index.lock:  # as a commit that takes long
        hits: list[tuple[str, float]] = []
        searching = threading.Thread(target=lambda: hits.extend(folder.search(query, 3)))
        searching.start()
        searching.join(timeout=120)
        assert hits


def test_an_old_index_file_is_replaced_and_two_keepers_see_each_other(
    folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    folder.put("d", [f"p{each}" for each in range(100)])
    folder.close()
    (folder.path / "indexes" / "1.faiss").write_bytes(b"old")
    shutil.rmtree(folder.path / "indexes" / "1")
    with caplog.at_level("INFO"):
        folder.open()
    assert caplog.text.count("earlier version") == 1 and not (folder.path / "indexes" / "1.faiss").exists()
    folder.check()
    second = IndexKeeper(folder.path / "indexes", folder.catalog, SIZES)
    folder.put("e", [f"q{each}" for each in range(200)])
    with second.reading("c") as (_, snapshot):
        assert len(snapshot.rows()) == 300
    second.close()
    folder.check()


def test_a_write_that_fails_leaves_the_index_as_it_was(folder: Folder) -> None:
    folder.put("d", ["one"])
    index = folder.keeper.get(1)

    def prepare_and_fail(change: CatalogChange) -> None:
        index.prepare(change, {passage.passage_id: vector_of("two")})
        raise RuntimeError

    passage = PassageText("two", tuple(b"two"))
    document = NewDocument("e", "e", "text/plain", "h", {})
    with index.lock, pytest.raises(RuntimeError):
        folder.catalog.put_document(
            "c", document, [passage], {passage.passage_id: vector_of("two")}, prepare=prepare_and_fail
        )
    index.abandon()
    folder.check()
    folder.put("e", ["three"])
    folder.check()
