"""The indexes of all collections of a data folder, and the threads that tend them."""

import logging
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import faiss

from kvblend.retriever.catalog import Catalog
from kvblend.retriever.catalog_reading import CollectionReading
from kvblend.retriever.index.merge import IndexSizes, Stopped
from kvblend.retriever.index.passage_index import PassageIndex
from kvblend.retriever.index.snapshot import Snapshot

__all__ = ["IndexKeeper"]

NUM_TENDERS = 2
"""One for what has just filled up, beside one at a merge of much."""
NICENESS = 10
"""Behind whoever answers a query on the same cores."""
MAX_TRIES = 4

logger = logging.getLogger(__name__)


class IndexKeeper:
    """Opens each collection's index when it is first asked for. Thread-safe."""

    def __init__(self, folder: Path, catalog: Catalog, sizes: IndexSizes) -> None:
        """Indexes of collections that are gone, and files of earlier versions, are deleted."""
        self._folder, self._catalog, self._sizes = folder, catalog, sizes
        self._indexes: dict[int, PassageIndex] = {}
        self._lock = threading.RLock()  # a work that is done at once is forgotten at once
        self._tended: dict[Future[None], PassageIndex] = {}
        self._tenders = ThreadPoolExecutor(NUM_TENDERS, thread_name_prefix="index", initializer=_stand_back)
        folder.mkdir(exist_ok=True)
        self._delete_strays()

    def close(self) -> None:
        for index in self._indexes.values():
            index.close()
        self._tenders.shutdown()

    def get(self, key: int) -> PassageIndex:
        """The index of the collection with this key."""
        with self._lock:
            if key not in self._indexes:
                self._indexes[key] = PassageIndex(self._folder / str(key), self._catalog, key, self._sizes)
            return self._indexes[key]

    def drop(self, key: int) -> None:
        """Delete an index: its collection is gone."""
        index = self.get(key)
        with self._lock:
            del self._indexes[key]
        index.delete_files()

    @contextmanager
    def reading(self, collection: str) -> Iterator[tuple[CollectionReading, Snapshot]]:
        """A collection and its index, both of one moment, and no lock that a commit holds.

        An index that is behind (at the first search, or since another process wrote) catches up before.
        Raises NotFoundError.
        """
        for attempt in range(MAX_TRIES):
            index = self.get(self._catalog.collection_state(collection).key)
            try:
                with index.reading(), self._catalog.reading(collection) as reading:
                    snapshot = index.at(reading.state.version)
                    if snapshot is not None:
                        yield reading, snapshot
                        return
            finally:
                if index.has_erasures:
                    self._submit(index)
            if attempt:  # else it may have been overtaken by more commits than the index keeps versions of
                with index.lock:
                    index.follow(self._catalog.collection_state(collection).version)
                self.tend(index)
        with index.lock, self._catalog.reading(collection) as reading:  # another process writes faster than this reads
            index.follow(reading.state.version)
            yield reading, index.current

    def tend(self, index: PassageIndex) -> None:
        """Have an index checked and merged in the background, if it needs that."""
        if index.needs_maintenance:
            self._submit(index)

    def _submit(self, index: PassageIndex) -> None:
        with self._lock:
            busy = sum(index is other for other in self._tended.values())
            if busy < NUM_TENDERS:
                with suppress(RuntimeError):  # closed meanwhile
                    work = self._tenders.submit(_maintain, index)
                    self._tended[work] = index
                    work.add_done_callback(self._forget)

    def wait(self) -> None:
        """Until nothing is being tended; for benchmarks and tests."""
        while True:
            with self._lock:
                works = list(self._tended)
            if not works:
                return
            for work in works:
                work.result()

    def _forget(self, work: Future[None]) -> None:
        with self._lock:
            self._tended.pop(work, None)

    def _delete_strays(self) -> None:
        records = self._catalog.list_settings()
        keys = {str(self._catalog.collection_state(record.name).key) for record in records}
        old = [path for path in self._folder.iterdir() if path.is_file()]
        if any(path.suffix == ".faiss" for path in old):
            logger.info("index files of an earlier version are deleted; their passages are indexed from the catalog")
        for path in old:
            path.unlink()
        for path in self._folder.iterdir():
            if path.name not in keys:
                shutil.rmtree(path, ignore_errors=True)


def _maintain(index: PassageIndex) -> None:
    try:
        index.maintain()
    except Stopped:
        pass
    except Exception:  # this thread's edge: the index is as it was, and the next commit tries again
        logger.exception("an index could not be merged")


def _stand_back() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
    faiss.omp_set_num_threads(1)
