"""The FAISS index over one collection's vectors: a cache of the catalog, which it follows."""

from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from kvblend.retriever.catalog import Catalog
from kvblend.retriever.index_file import load_index, save_index
from kvblend.retriever.records import CatalogChange, CollectionState

__all__ = ["PassageIndex"]

SYNC_BATCH = 4096


class PassageIndex:
    """Exact inner-product search over the rows of one collection's passages.

    Whoever calls `follow`, `apply` or `search` holds `lock`, from a write to the catalog until the index has
    followed it. The catalog is the truth: a file that is missing, torn or behind is made up from it.
    """

    def __init__(self, path: Path, catalog: Catalog, collection_key: int) -> None:
        self.lock = Lock()
        self._path = path
        self._catalog = catalog
        self._collection_key = collection_key
        self._index: Any = None  # faiss.IndexIDMap2, from the first vector on
        self._save_lock = Lock()
        self._num_unsaved = 0
        self._file_outlives_passages = False
        self._version: bytes | None = None
        loaded = load_index(path, collection_key=collection_key)
        if loaded is not None:
            self._index, self._version = loaded

    @property
    def rows(self) -> list[int]:
        """The rows that the index holds."""
        return [] if self._index is None else faiss.vector_to_array(self._index.id_map).tolist()

    def follow(self, version: bytes) -> None:
        """Catch up with the catalog, if `version`, its collection's, is not the one that the index has."""
        if version == self._version:
            return
        catalog_version, rows = self._catalog.passage_rows(self._collection_key)
        held = set(self.rows)
        self._remove(sorted(held.difference(rows)))
        missing = [row for row in rows if row not in held]
        for start in range(0, len(missing), SYNC_BATCH):
            self._add(self._catalog.vectors(missing[start : start + SYNC_BATCH]))
        self._version = catalog_version

    def apply(self, change: CatalogChange, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        """Follow one change of the catalog, whose new passages' vectors are at hand."""
        if self._version != change.old_version:
            self.follow(change.version)
            return
        self._remove(sorted(change.dropped.values()))
        self._add({row: vectors[passage_id] for passage_id, row in change.new.items()})
        self._version = change.version

    def search(self, query: NDArray[np.float32], *, top_k: int) -> list[tuple[int, float]]:
        """The rows nearest to a unit vector and their cosine similarities, best first; equals by row."""
        if self._index is None or self._index.ntotal == 0:
            return []
        scores, rows = self._index.search(query[None], min(top_k, self._index.ntotal))
        found = zip(rows[0].tolist(), scores[0].tolist(), strict=True)
        return sorted(found, key=lambda hit: (-hit[1], hit[0]))

    def persist(self, *, least_unsaved: int = 1) -> None:
        """Bring the file up to date, where that is due; called without `lock`.

        It is written once `least_unsaved` vectors have changed. Where passages were deleted it is deleted at
        once, to be written anew later: a vector tells of its text.
        """
        with self._save_lock:
            with self.lock:
                if self._file_outlives_passages:
                    self._path.unlink(missing_ok=True)
                    self._file_outlives_passages = False
                if self._num_unsaved < least_unsaved or self._index is None or self._version is None:
                    return
                index_bytes = faiss.serialize_index(self._index).tobytes()
                state = CollectionState(self._collection_key, self._version)
                self._num_unsaved = 0
            save_index(self._path, index_bytes, state)

    def delete_file(self) -> None:
        """Delete the file for good, with its collection."""
        with self._save_lock:
            self._path.unlink(missing_ok=True)
            self._num_unsaved = 0

    def _add(self, vectors: dict[int, NDArray[np.float32]]) -> None:
        if not vectors:
            return
        matrix = np.ascontiguousarray(np.stack(list(vectors.values())), dtype=np.float32)
        if self._index is None:
            self._index = faiss.IndexIDMap2(faiss.IndexFlatIP(matrix.shape[1]))
        self._index.add_with_ids(matrix, np.fromiter(vectors, dtype=np.int64))
        self._num_unsaved += len(vectors)

    def _remove(self, rows: list[int]) -> None:
        if rows and self._index is not None:
            self._index.remove_ids(np.asarray(rows, dtype=np.int64))
            self._num_unsaved += len(rows)
            self._file_outlives_passages = True
