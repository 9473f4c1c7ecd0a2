"""The vector index over one collection: a cache of the catalog, which it follows, in parts that are never rewritten."""

import fcntl
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from kvblend.retriever.catalog import Catalog
from kvblend.retriever.index.load import CHECKED_AT_OPEN, OWNER_FILE, load_snapshot
from kvblend.retriever.index.manifest import save_manifest
from kvblend.retriever.index.merge import IndexSizes, choose_merge, merge_views
from kvblend.retriever.index.part import Part
from kvblend.retriever.index.readers import Readers
from kvblend.retriever.index.snapshot import PartView, Snapshot
from kvblend.retriever.records import CatalogChange

__all__ = ["PassageIndex"]

SYNC_BATCH = 4096
KEPT_VERSIONS = 32
SMALLEST_TAIL = 256

Erasures = list[tuple[Part, NDArray[np.int64]]]

logger = logging.getLogger(__name__)


class PassageIndex:
    """Inner-product search over the rows of one collection's passages. A search holds no lock: it takes a `Snapshot`.

    Whoever writes holds `lock`: `prepare` within the catalog's transaction, so that whoever sees the new version in the
    catalog finds its snapshot here, then `settle` behind the commit. The catalog is the truth: what is missing, torn or
    behind is made up from it. Of several indexes on one folder the first keeps the files; the others have what is newer
    than those in memory alone.
    """

    def __init__(self, folder: Path, catalog: Catalog, collection_key: int, sizes: IndexSizes) -> None:
        self.lock = threading.Lock()
        self.sizes = sizes
        self._folder, self._catalog, self._collection_key = folder, catalog, collection_key
        self._recent: OrderedDict[bytes, Snapshot] = OrderedDict()
        self._prepared: tuple[Snapshot, Erasures] | None = None
        self._readers = Readers()
        self._to_erase: list[tuple[int, Erasures]] = []
        self._merging: set[Part] = set()
        self._closed = False
        folder.mkdir(exist_ok=True)
        self._owner_file: Any = (folder / OWNER_FILE).open("ab")
        self._owned = True
        try:
            fcntl.flock(self._owner_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._owned = False
        self._current = load_snapshot(folder, collection_key, owned=self._owned)
        self._unchecked = [view.part for view in self._current.views if view.part.capacity > CHECKED_AT_OPEN]
        self._publish(self._current)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Of what a snapshot holds that is taken within, nothing is erased."""
        epoch = self._readers.enter()
        try:
            yield
        finally:
            self._readers.leave(epoch)

    @property
    def has_erasures(self) -> bool:
        """Whether slots wait to be erased, since a search could still look at them."""
        return bool(self._to_erase)

    @property
    def current(self) -> Snapshot:
        return self._current

    def at(self, version: bytes) -> Snapshot | None:
        """The index as of a version of its collection; None where that is long ago, or not known here yet."""
        return self._recent.get(version)

    def follow(self, version: bytes) -> None:
        """Catch up with the catalog, if `version`, its collection's, is not the one that the index has."""
        if version == self._current.version:
            return
        catalog_version, rows = self._catalog.passage_rows(self._collection_key)
        wanted, held = np.asarray(rows, np.int64), self._current.rows()
        views, erased = self._without(self._current.views, np.setdiff1d(held, wanted))
        missing = np.setdiff1d(wanted, held).tolist()
        if len(missing) > SYNC_BATCH:
            logger.info("collection %d: %d passages are indexed from the catalog", self._collection_key, len(missing))
        for start in range(0, len(missing), SYNC_BATCH):
            views = self._with(views, self._catalog.vectors(missing[start : start + SYNC_BATCH]))
        self._prepared = replace(self._current, version=catalog_version, views=views), erased
        self.settle()

    def prepare(self, change: CatalogChange, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        """Have a change's snapshot ready; called within its transaction, of an index at the version before."""
        if change.collection_key != self._collection_key or self._current.version != change.old_version:
            return  # the collection is another one of its name; or another process wrote: the next search follows
        dropped = np.sort(np.fromiter(change.dropped.values(), np.int64))
        views, erased = self._without(self._current.views, dropped)
        added = {**change.new, **change.embedded}
        views = self._with(views, {row: vectors[passage_id] for passage_id, row in added.items()})
        snapshot = Snapshot(change.version, views)
        self._prepared = snapshot, erased
        self._publish(snapshot)

    def settle(self) -> None:
        """The catalog has committed: what was prepared is what is so; write it down."""
        if self._prepared is None:
            return
        (snapshot, erased), self._prepared = self._prepared, None
        old, self._current = self._current, snapshot
        self._publish(snapshot)
        if [view.part for view in old.views] != [view.part for view in snapshot.views]:
            self._save_manifest()
        self._erase_later(erased)
        self._erase_due()

    def abandon(self) -> None:
        """The catalog did not commit: forget what was prepared, whose slots the next change takes."""
        if self._prepared is not None:
            (snapshot, _), self._prepared = self._prepared, None
            if snapshot.version is not None and snapshot.version != self._current.version:
                self._recent.pop(snapshot.version, None)

    def maintain(self) -> None:
        """Check what is not checked yet and merge what is to be merged; of any thread, beside queries and writes."""
        with self.lock:
            self._erase_due()
        while self._unchecked and not self._closed:
            self._check(self._unchecked.pop())
        while not self._closed and self._merge_once():
            pass

    @property
    def needs_maintenance(self) -> bool:
        with self.lock:
            return bool(self._unchecked or self._choose())

    def close(self) -> None:
        """Sync the files and let them go; a merge under way is given up."""
        self._closed = True
        with self.lock:
            self._erase_due(regardless=True)
            if self._owned:
                for view in self._current.views[-1:]:
                    view.part.flush()
            self._owned = False
            self._owner_file.close()

    def delete_files(self) -> None:
        """Delete the files for good, with the collection."""
        self._closed = True
        with self.lock:
            if self._owned:
                for path in self._folder.iterdir():
                    path.unlink(missing_ok=True)
                self._folder.rmdir()
            self._owned = False
            self._owner_file.close()

    def _publish(self, snapshot: Snapshot) -> None:
        if snapshot.version is not None:
            self._recent[snapshot.version] = snapshot
            while len(self._recent) > KEPT_VERSIONS:
                self._recent.popitem(last=False)

    def _without(self, views: tuple[PartView, ...], rows: NDArray[np.int64]) -> tuple[tuple[PartView, ...], Erasures]:
        """The views without these rows (sorted), and the slots to erase once that is so."""
        if not len(rows):
            return views, []
        slots = [view.slots_of(rows) for view in views]
        pairs = list(zip(views, slots, strict=True))
        erased = [(view.part, gone) for view, gone in pairs if len(gone)]
        return tuple(view.without(gone) if len(gone) else view for view, gone in pairs), erased

    def _with(self, views: tuple[PartView, ...], vectors: Mapping[int, NDArray[np.float32]]) -> tuple[PartView, ...]:
        """The views with these vectors by row behind what is there, in new parts where the last is full."""
        rows, start = np.fromiter(vectors, np.int64, len(vectors)), 0
        matrix = np.stack(list(vectors.values())).astype(np.float32, copy=False) if len(vectors) else None
        while matrix is not None and start < len(rows):
            if not views or views[-1].is_full:
                total = sum(view.count for view in views)
                capacity = min(self.sizes.tail, max(SMALLEST_TAIL, total))
                views = (*views, PartView(self._new_part(capacity, matrix.shape[1]), 0))
            last = views[-1]
            stop = min(len(rows), start + last.part.capacity - last.count)
            last.part.put(last.count, rows[start:stop], matrix[start:stop])
            views = (*views[:-1], replace(last, count=last.count + stop - start))
            start = stop
        return views

    def _new_part(self, capacity: int, dim: int) -> Part:
        if self._owned:
            try:
                return Part.create(self._new_path(), capacity=capacity, dim=dim)
            except OSError as error:
                logger.warning("a part of the index stays in memory until the next start: %s", error)
        return Part.create(None, capacity=capacity, dim=dim)

    def _new_path(self) -> Path:
        return self._folder / f"{uuid4().hex}.part"

    def _erase_later(self, erased: Erasures) -> None:
        if erased:
            self._to_erase.append((self._readers.next_epoch(), erased))

    def _erase_due(self, *, regardless: bool = False) -> None:
        """Erase what no search under way can still look at; then, and not before, the files are at the new version."""
        oldest = self._readers.oldest()
        while self._to_erase and (regardless or oldest is None or oldest >= self._to_erase[0][0]):
            for part, slots in self._to_erase.pop(0)[1]:
                part.erase(slots)
        if not self._to_erase:
            self._note_version()

    def _save_manifest(self) -> None:
        """Of parts in memory nothing: their rows come from the catalog at the next start.

        What has just filled up is not synced: so small a part is checked whole when it is opened.
        """
        if self._owned:
            names = [view.part.path.name for view in self._current.views if view.part.path is not None]
            save_manifest(self._folder, self._collection_key, names)

    def _check(self, part: Part) -> None:
        """Find the slots of a large part that are not what was written, and make them up."""
        damaged: list[NDArray[np.int64]] = []
        for start in range(0, part.capacity, SYNC_BATCH):
            if self._closed:
                return
            stop = min(part.capacity, start + SYNC_BATCH)
            damaged.append(start + np.flatnonzero(~part.sound(start, stop)))
        slots = np.concatenate(damaged)
        with self.lock:
            views = self._current.views
            number = next((number for number, view in enumerate(views) if view.part is part), None)
            if number is None or self._closed:
                return
            alive = views[number].alive
            slots = slots if alive is None else slots[alive[slots]]
            if not len(slots):
                return
            logger.warning("%d damaged vectors of the index are made up from the catalog", len(slots))
            views = (*views[:number], views[number].without(slots), *views[number + 1 :])
            version, self._current = self._current.version, Snapshot(None, views)
            if version is not None:
                self.follow(version)

    def _choose(self) -> list[PartView]:
        """Full parts that nobody merges yet; beside a merge of a higher level only the smallest ones."""
        free = [
            view
            for view in self._current.views
            if view.is_full and view.part not in self._merging and (self._owned or view.part.path is None)
        ]
        return choose_merge(free, self.sizes, max_level=0 if self._merging else None)

    def _merge_once(self) -> bool:
        """Whether there was something to merge."""
        with self.lock:
            chosen = self._choose()
            self._merging.update(view.part for view in chosen)
            path = self._new_path() if self._owned else None
        if not chosen:
            return False
        try:
            merged = merge_views(chosen, path, self.sizes, lambda: self._closed)
            with self.lock:
                if not self._closed:
                    self._install(chosen, merged)
        except BaseException:
            if path is not None:
                for left in (path, path.with_suffix(".clusters")):
                    left.unlink(missing_ok=True)
            raise
        finally:
            self._merging.difference_update(view.part for view in chosen)
        return True

    def _install(self, merged_of: Sequence[PartView], merged: PartView | None) -> None:
        """Put a merged part in the place of those it was made of, without what was deleted meanwhile."""
        old = {view.part for view in merged_of}
        now = [view for view in self._current.views if view.part in old]
        erased: list[NDArray[np.int64]] = []
        if merged is not None and any(before is not after for before, after in zip(merged_of, now, strict=True)):
            alive = np.concatenate([view.rows() for view in now])
            dead = np.flatnonzero(~np.isin(merged.part.rows, alive))
            erased = [dead]
            merged = merged.without(dead)
        rest = tuple(view for view in self._current.views if view.part not in old)
        self._current = replace(self._current, views=(merged, *rest) if merged is not None else rest)
        self._publish(self._current)
        if merged is not None:
            self._erase_later([(merged.part, dead) for dead in erased])
        self._erase_due()
        self._save_manifest()
        for part in old:
            if self._owned and part.path is not None:
                for path in (part.path, part.path.with_suffix(".clusters")):
                    with suppress(FileNotFoundError):
                        path.unlink()

    def _note_version(self) -> None:
        """In the last part, whichever that is now."""
        if self._owned and self._current.views and self._current.version is not None:
            last = self._current.views[-1]
            last.part.commit(self._current.version, last.count)
