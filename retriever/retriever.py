"""The retriever: documents in, passages out, in one data folder."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvblend.core.errors import ConflictError, InvalidRequestError, NotFoundError
from kvblend.core.media_type import guess_media_type
from kvblend.retriever.catalog import Catalog
from kvblend.retriever.document_identity import describe_document, encode_text
from kvblend.retriever.embedder import EmbeddingModel
from kvblend.retriever.ingest import Hit, IngestPlan, IngestResult, distinct
from kvblend.retriever.packing import PassageText
from kvblend.retriever.passage_index import PassageIndex
from kvblend.retriever.passage_table import MissingVectorsError
from kvblend.retriever.records import CatalogChange, DocumentRecord
from kvblend.retriever.splitter import SPLITTER_VERSION, SplitDocument, split_document
from kvblend.retriever.tokenizer import PassageTokenizer

__all__ = ["Retriever"]

EMBEDDING_MODEL = "embedding_model"  # the name under which a collection's embedding model is stored
EMBED_BATCH = 64


class Retriever:
    """Plans and commits ingests, and searches, from many threads of one process at once.

    A search waits for no ingest but for the moment of its commit, and finds a document's old version until
    then. All work that takes long (parsing, splitting, embedding) is done outside of any lock.
    """

    def __init__(self, path: Path, *, embedder: EmbeddingModel, tokenizer: Any, index_save_after: int = 1024) -> None:
        """Open or create the data folder.

        `tokenizer` is the language model's (a `tokenizers.Tokenizer` or a Hugging Face fast tokenizer). An index
        file is written whenever `index_save_after` vectors have changed, and at `close`.
        """
        path.mkdir(parents=True, exist_ok=True)
        self.catalog = Catalog(path / "catalog.sqlite3")
        self.embedder = embedder
        self.tokenizer = PassageTokenizer(tokenizer)
        self._index_path = path / "indexes"
        self._index_path.mkdir(exist_ok=True)
        self._index_save_after = index_save_after
        self._indexes: dict[int, PassageIndex] = {}
        self._lock = Lock()
        self._delete_stray_files()

    def close(self) -> None:
        """Write the index files and close the catalog."""
        for index in self._indexes.values():
            index.persist()
        self.catalog.close()

    def plan_ingest(
        self,
        collection: str,
        data: bytes | str,
        *,
        document_id: str | None = None,
        name: str | None = None,
        media_type: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        split: SplitDocument | None = None,
    ) -> IngestPlan:
        """Parse and split a document, unless it is unchanged, and tell how it differs from what is there.

        Nothing is written. A text that is given as `str` is plain text unless its media type or name says otherwise.
        `split` does the work elsewhere than in this thread, for this retriever's tokenizer.

        Raises:
            NotFoundError: there is no such collection.
            InvalidRequestError: the document has no text, or is described wrongly.
            UnsupportedDocumentError: no parser can read it.
        """
        record = self.catalog.collection_settings(collection)
        if isinstance(data, str):
            data = encode_text(data)
            media_type = media_type or guess_media_type(name or document_id or "") or "text/plain"
        document = describe_document(
            data,
            splitter=f"{SPLITTER_VERSION} {record.passage_tokens} {self.tokenizer.fingerprint}",
            document_id=document_id,
            name=name,
            media_type=media_type,
            metadata=metadata,
        )
        old = self._find_document(collection, document.id)
        old_passages = self.catalog.document_passages(collection, document.id) if old else []
        if old is not None and old.content_hash == document.content_hash:
            return IngestPlan.of_unchanged(collection, document, old_passages)
        split = split or partial(split_document, tokenizer=self.tokenizer)
        passages = split(data, document.media_type, document.name, record.passage_tokens)
        if not passages:
            raise InvalidRequestError(
                f"document {document.name!r} has no text (a PDF of scanned pages needs text recognition first)",
                param="text",
            )
        ids, old_ids = distinct(passages), distinct(old_passages)
        references = self.catalog.num_references(collection, [*ids, *old_ids])
        return IngestPlan(
            collection,
            document,
            False,
            tuple(passages),
            new=tuple(passage_id for passage_id in ids if passage_id not in references),
            kept=tuple(passage_id for passage_id in ids if passage_id in references),
            dropped=tuple(old_id for old_id in old_ids if old_id not in ids and references.get(old_id) == 1),
        )

    def is_current(self, plan: IngestPlan) -> bool:
        """Whether the catalog holds just what the plan would put there: text, name, media type and metadata."""
        old = self._find_document(plan.collection, plan.document.id)
        return old is not None and all(getattr(old, name) == value for name, value in vars(plan.document).items())

    def commit_document(self, plan: IngestPlan) -> IngestResult:
        """Embed a plan's new passages and put the document in its old version's place, in one moment.

        What is new and what is dropped is decided then, whatever happened since the plan was made.

        Raises:
            NotFoundError: the collection is gone.
            ConflictError: the collection was embedded by another model.
        """
        self._check_embedding_model(plan.collection, claim=True)
        by_id = {passage.passage_id: passage for passage in plan.passages}
        vectors: dict[str, NDArray[np.float32]] = {}
        while True:
            known = self.catalog.num_references(plan.collection, list(by_id))
            self._embed([passage for key, passage in by_id.items() if key not in known and key not in vectors], vectors)
            try:
                change = self._write(
                    plan.collection,
                    lambda: self.catalog.put_document(plan.collection, plan.document, plan.passages, vectors),
                    vectors,
                )
                break
            except MissingVectorsError:
                continue  # a passage that was there has been deleted while others were embedded
        document = self.catalog.get_document(plan.collection, plan.document.id)
        kept = tuple(passage_id for passage_id in by_id if passage_id not in change.new)
        return IngestResult(document, tuple(change.new), kept, tuple(change.dropped))

    def delete_document(self, collection: str, document_id: str) -> list[str]:
        """Delete a document; returns the ids of the passages that no document of the collection holds any more.

        Raises:
            NotFoundError: there is no such collection or document.
        """
        change = self._write(collection, lambda: self.catalog.delete_document(collection, document_id), {})
        return list(change.dropped)

    def delete_collection(self, collection: str) -> list[str]:
        """Delete a collection with all its documents; returns the ids of its passages. Raises NotFoundError."""
        key = self.catalog.collection_state(collection).key
        index = self._index(key)
        with index.lock:
            passage_ids = self.catalog.delete_collection(collection)
        with self._lock:
            self._indexes.pop(key, None)
        index.delete_file()
        return passage_ids

    def search(self, collection: str, query: str, *, top_k: int) -> list[Hit]:
        """The passages nearest to a query, best first, each once.

        Raises:
            NotFoundError: there is no such collection.
            ConflictError: the collection was embedded by another model.
        """
        if not self._check_embedding_model(collection, claim=False):
            return []
        vector = self.embedder.encode_query(query)
        index = self._index(self.catalog.collection_state(collection).key)
        with index.lock:
            index.follow(self.catalog.collection_state(collection).version)
            scores = index.search(vector, top_k=top_k)
            found = self.catalog.found_passages([row for row, _ in scores])
        return [Hit.of(*found[row], score=score) for row, score in scores if row in found]

    def check_integrity(self) -> None:
        """Assert that the catalog is sound and that each index, once it has followed, holds just its vectors."""
        self.catalog.check_integrity()
        for record in self.catalog.list_settings():
            state = self.catalog.collection_state(record.name)
            index = self._index(state.key)
            with index.lock:
                index.follow(state.version)
                assert sorted(index.rows) == sorted(self.catalog.passage_rows(state.key)[1])

    def _write(
        self, collection: str, write: Callable[[], CatalogChange], vectors: Mapping[str, NDArray[np.float32]]
    ) -> CatalogChange:
        """Write to the catalog and let the index follow before any search sees either."""
        key = self.catalog.collection_state(collection).key
        index = self._index(key)
        with index.lock:
            change = write()
            if change.collection_key == key:  # else the collection was replaced by another of its name just now
                index.apply(change, vectors)
        index.persist(least_unsaved=self._index_save_after)
        return change

    def _embed(self, passages: Sequence[PassageText], vectors: dict[str, NDArray[np.float32]]) -> None:
        for start in range(0, len(passages), EMBED_BATCH):
            batch = passages[start : start + EMBED_BATCH]
            encoded = self.embedder.encode([passage.text for passage in batch])
            vectors.update((passage.passage_id, vector) for passage, vector in zip(batch, encoded, strict=True))

    def _check_embedding_model(self, collection: str, *, claim: bool) -> bool:
        """Whether the collection has been embedded, by the model loaded now; `claim` it for that model if not."""
        stored = self.catalog.get_value(EMBEDDING_MODEL, collection=collection)
        if stored is None:
            if claim:
                self.catalog.put_value(EMBEDDING_MODEL, self.embedder.fingerprint, collection=collection)
        elif stored != self.embedder.fingerprint:
            raise ConflictError(
                f"collection {collection!r} was embedded by another embedding model than the one loaded now: "
                "ingest its documents into a new collection",
                param="collection",
            )
        return stored is not None

    def _find_document(self, collection: str, document_id: str) -> DocumentRecord | None:
        try:
            return self.catalog.get_document(collection, document_id)
        except NotFoundError:
            return None

    def _index(self, key: int) -> PassageIndex:
        with self._lock:
            if key not in self._indexes:
                self._indexes[key] = PassageIndex(self._index_path / f"{key}.faiss", self.catalog, key)
            return self._indexes[key]

    def _delete_stray_files(self) -> None:
        """Delete what a crash has left of index files."""
        keys = {self.catalog.collection_state(record.name).key for record in self.catalog.list_settings()}
        for file in self._index_path.iterdir():
            if file.name not in {f"{key}.faiss" for key in keys}:
                file.unlink()
