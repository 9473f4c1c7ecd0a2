"""The retriever: documents in, passages out, in one data folder."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvblend.core.collection_name import name_in_tenant
from kvblend.core.errors import ConflictError, InvalidRequestError, NotFoundError
from kvblend.core.media_type import guess_media_type
from kvblend.core.rest import MetadataFilter, SearchMode
from kvblend.retriever.catalog import Catalog
from kvblend.retriever.document_identity import describe_document, encode_text
from kvblend.retriever.embedder import EmbeddingModel
from kvblend.retriever.index import IndexKeeper, IndexSizes
from kvblend.retriever.ingest import Hit, IngestPlan, IngestResult, distinct
from kvblend.retriever.packing import PassageText
from kvblend.retriever.passage_table import MissingVectorsError
from kvblend.retriever.records import CatalogChange, DocumentRecord, FoundPassage
from kvblend.retriever.reranker import Reranker
from kvblend.retriever.search import PassageSearch, with_neighbors
from kvblend.retriever.splitter import SPLITTER_VERSION, SplitDocument, split_document
from kvblend.retriever.tokenizer import PassageTokenizer

__all__ = ["Retriever"]

EMBEDDING_MODEL = "embedding_model"  # the name under which a collection's embedding model is stored
EMBED_BATCH = 64


class Retriever:
    """Plans and commits ingests, and searches, from many threads of one process at once.

    A search waits for no ingest, not for its commit either, and finds a document's old version until then. All work
    that takes long (parsing, splitting, embedding) is done outside of any lock.
    """

    def __init__(
        self,
        path: Path,
        *,
        embedder: EmbeddingModel,
        tokenizer: Any,
        reranker: Reranker | None = None,
        index_sizes: IndexSizes | None = None,
    ) -> None:
        """Open or create the data folder.

        `tokenizer` is the language model's (a `tokenizers.Tokenizer` or a Hugging Face fast tokenizer).
        """
        path.mkdir(parents=True, exist_ok=True)
        self.catalog = Catalog(path / "catalog.sqlite3")
        self.embedder, self.reranker = embedder, reranker
        self.tokenizer = PassageTokenizer(tokenizer)
        self._indexes = IndexKeeper(path / "indexes", self.catalog, index_sizes or IndexSizes())

    def close(self) -> None:
        """Let the index files go and close the catalog."""
        self._indexes.close()
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
            return IngestPlan.of_unchanged(collection, document, old_passages, data)
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
            source=data,
        )

    def is_current(self, plan: IngestPlan) -> bool:
        """Whether the catalog holds just what the plan would put there: text, name, media type and metadata, with the
        document's source and a vector of each of its passages."""
        old = self._find_document(plan.collection, plan.document.id)
        if old is None or any(getattr(old, name) != value for name, value in vars(plan.document).items()):
            return False
        return self.catalog.is_whole(plan.collection, plan.document.id)

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
            known = self.catalog.embedded(plan.collection, list(by_id))
            self._embed([passage for key, passage in by_id.items() if key not in known and key not in vectors], vectors)
            try:
                change = self._write(
                    plan.collection,
                    lambda prepare: self.catalog.put_document(
                        plan.collection,
                        plan.document,
                        plan.passages,
                        vectors,
                        plan.contexts,
                        source=plan.source,
                        prepare=prepare,
                    ),
                    vectors,
                )
                break
            except MissingVectorsError:
                continue  # a passage that was there has been deleted while others were embedded
        document = self.catalog.get_document(plan.collection, plan.document.id)
        kept = tuple(passage_id for passage_id in by_id if passage_id not in change.new)
        return IngestResult(document, tuple(change.new), kept, tuple(change.dropped))

    def begin_rebuild(self, collection: str) -> None:
        """Let a collection that was embedded by another model be embedded by the one loaded now. Its passages are found
        by their words alone until their documents are committed anew. Raises NotFoundError."""
        if self.catalog.get_value(EMBEDDING_MODEL, collection=collection) in (None, self.embedder.fingerprint):
            return
        key = self.catalog.forget_vectors(collection, values={EMBEDDING_MODEL: self.embedder.fingerprint})
        self._indexes.drop(key)

    def delete_document(self, collection: str, document_id: str) -> list[str]:
        """Delete a document; returns the ids of the passages that no document of the collection holds any more.

        Raises:
            NotFoundError: there is no such collection or document.
        """
        self.catalog.get_document(collection, document_id)  # no index is opened for what is not there
        change = self._write(
            collection, lambda prepare: self.catalog.delete_document(collection, document_id, prepare=prepare), {}
        )
        return list(change.dropped)

    def delete_collection(self, collection: str) -> list[str]:
        """Delete a collection with all its documents; returns the ids of its passages. Raises NotFoundError."""
        key = self.catalog.collection_state(collection).key
        passage_ids = self.catalog.delete_collection(collection)
        self._indexes.drop(key)
        return passage_ids

    def search(
        self,
        collection: str,
        query: str,
        *,
        top_k: int,
        mode: SearchMode = "hybrid",
        filter: MetadataFilter | None = None,
        min_score: float | None = None,
        neighbors: int = 0,
        rerank_candidates: int = 0,
    ) -> list[Hit]:
        """The passages that answer a query best, best first, each once: see `RetrievalChoices`.

        Passages found whose surroundings meet stand together with these, in their document's order. The best
        `rerank_candidates` are reranked; none are where it is 0.

        Raises:
            InvalidRequestError: they are to be reranked, and there is no reranker.
            NotFoundError: there is no such collection.
            ConflictError: the collection was embedded by another model, and `mode` is not keyword.
        """
        if rerank_candidates and self.reranker is None:
            raise InvalidRequestError("this service has no reranker (KVBLEND_RERANKER)", param="rerank")
        vector = None
        if mode != "keyword":
            if not self._check_embedding_model(collection, claim=False):
                return []
            vector = self.embedder.encode_query(query)
        with self._indexes.reading(collection) as (reading, snapshot):
            search = PassageSearch(reading, snapshot, query, vector, filter)
            best = search.best(
                mode, top_k=max(top_k, rerank_candidates), min_score=None if rerank_candidates else min_score
            )
            scores = dict(best)
            found = search.found(list(scores))
            if neighbors and not rerank_candidates:
                found = with_neighbors(reading, found, neighbors)
        if rerank_candidates:  # which takes long, and holds no moment's state
            scores = self._rerank(query, found, top_k=top_k, min_score=min_score)
            by_row = {each.passage.row: each for each in found}
            found = [by_row[row] for row in scores]
            if neighbors:
                with self._indexes.reading(collection) as (reading, _):
                    found = with_neighbors(reading, found, neighbors)
        return [
            Hit.of(each, score=scores.get(each.passage.row), is_neighbor=each.passage.row not in scores)
            for each in found
        ]

    def _rerank(
        self, query: str, found: Sequence[FoundPassage], *, top_k: int, min_score: float | None
    ) -> dict[int, float | None]:
        """The reranker's scores by row, best first; equals as they were found."""
        assert self.reranker is not None
        scores = self.reranker.scores(query, [each.passage.text for each in found])
        ranked = sorted(zip(found, scores, strict=True), key=lambda pair: -pair[1])
        kept = [(each.passage.row, score) for each, score in ranked if min_score is None or score >= min_score]
        return dict(kept[:top_k])

    def wait_for_index(self) -> None:
        """Until the indexes are checked and merged, which goes on beside everything else; for benchmarks and tests."""
        self._indexes.wait()

    def check_integrity(self) -> None:
        """Assert that the catalog is sound and that each index, once it has followed, holds just its vectors."""
        self.catalog.check_integrity()
        for record in self.catalog.list_settings():
            state = self.catalog.collection_state(record.name)
            index = self._indexes.get(state.key)
            with index.lock:
                index.follow(state.version)
                assert sorted(index.current.rows()) == sorted(self.catalog.passage_rows(state.key)[1])

    def _write(
        self,
        collection: str,
        write: Callable[[Callable[[CatalogChange], None]], CatalogChange],
        vectors: Mapping[str, NDArray[np.float32]],
    ) -> CatalogChange:
        """Write to the catalog, with the index ready to be searched at the new version before anyone sees it."""
        index = self._indexes.get(self.catalog.collection_state(collection).key)
        with index.lock:
            index.follow(self.catalog.collection_state(collection).version)
            try:
                change = write(lambda change: index.prepare(change, vectors))
            except BaseException:
                index.abandon()
                raise
            index.settle()
        self._indexes.tend(index)
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
                f"collection {name_in_tenant(collection)!r} was embedded by another embedding model than the one "
                "loaded now: rebuild it",
                param="collection",
            )
        return stored is not None

    def _find_document(self, collection: str, document_id: str) -> DocumentRecord | None:
        try:
            return self.catalog.get_document(collection, document_id)
        except NotFoundError:
            return None
