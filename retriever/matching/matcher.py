"""Passages of the catalog in a prompt's tokens."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from kvblend.retriever.catalog import Catalog
from kvblend.retriever.matching.gram_index import GramIndex
from kvblend.retriever.matching.runs import Run, disjoint_runs, equal_runs
from kvblend.retriever.records import FoundPassage, PassageRecord

__all__ = ["HeldPassage", "PassageMatcher", "TokenMatch"]

PAGE = 256
"""Passages that are taken up at a time: a few milliseconds' work."""
MAX_HOLDERS = 4
"""Of one passage, in how many collections its places are looked at."""
BULK_FANOUT = 2
"""Of tables that are merged while many more are to come."""
MAX_TABLES = 4
"""With more of them it is time to merge."""
SPARE = 1024
"""Deleted passages that the index may keep, beside as many as there are others."""


@dataclass(frozen=True)
class HeldPassage:
    """A passage in one of the collections that hold it."""

    collection: str
    found: FoundPassage


@dataclass(frozen=True)
class TokenMatch:
    """Tokens `[start, start + num_tokens)` of a prompt, which are those of a passage from its token `skipped` on.

    `holders`: collections that hold it, of those that the caller may read; at least one.
    """

    start: int
    num_tokens: int
    skipped: int
    holders: tuple[HeldPassage, ...]

    @property
    def collections(self) -> list[str]:
        """Names of the holders."""
        return [each.collection for each in self.holders]

    @property
    def passage(self) -> PassageRecord:
        return self.holders[0].found.passage


class PassageMatcher:
    """Follows the catalog by its rows, whose numbers only grow: at a match, and in a thread of its own for the rest.

    The index is a guess at what to look at; tokens are compared with the catalog's own, of one moment, within the
    collections that the caller may read. What is deleted is therefore no match from then on. Thread-safe.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._index, self._row = GramIndex(), 0
        self._lock = threading.Lock()
        self._merging = threading.Lock()
        self._is_closed = False
        self.is_behind = False
        """Whether the last match left something for `catch_up`."""

    def __len__(self) -> int:
        """Passages in the index, deleted ones among them."""
        return len(self._index)

    @property
    def is_empty(self) -> bool:
        """Whether the catalog holds no passage at all."""
        return len(self._index) == 0 and self._catalog.num_passages() == 0

    @property
    def num_bytes(self) -> int:
        """Of the index's tables."""
        return self._index.num_bytes

    def close(self) -> None:
        """Have `catch_up` return soon."""
        self._is_closed = True

    def follow(self) -> bool:
        """Take up passages that are new, at most a page; whether there may be more."""
        with self._lock:
            page = self._catalog.tokens_behind(self._row, limit=PAGE)
            self._index.add([(passage_id, tokens.astype(np.int64)) for _, passage_id, tokens in page])
            self._row = page[-1][0] if page else self._row
        return len(page) == PAGE

    def catch_up(self) -> None:
        """Take up all that is new, put tables together, and begin anew where most of the index is of what is gone."""
        with self._merging:
            if len(self._index) > SPARE + 2 * self._catalog.num_passages():
                with self._lock:
                    self._index, self._row = GramIndex(), 0
            while not self._is_closed and self.follow():
                while self._index.merge(BULK_FANOUT):
                    pass
            while not self._is_closed and self._index.merge():
                pass

    def match(self, token_ids: Sequence[int], may_read: Callable[[str], bool] = lambda _: True) -> list[TokenMatch]:
        """The passages in a prompt, in its order, no two of them overlapping. `may_read`: of a collection's name."""
        self.is_behind = self.follow() or self._index.num_tables > MAX_TABLES
        prompt = np.asarray(token_ids, np.int64)
        candidates = self._index.candidates(prompt)
        if not candidates:
            return []
        with self._catalog.reading_all() as reading:
            rows: dict[str, dict[str, int]] = {}
            for collection, own in reading.rows_by_collection({each.passage_id for each in candidates}).items():
                if may_read(collection):
                    for passage_id, row in own.items():
                        rows.setdefault(passage_id, {})[collection] = row
            tokens = reading.token_arrays([next(iter(own.values())) for own in rows.values()])
            passages = {
                passage_id: tokens[next(iter(own.values()))].astype(np.int64) for passage_id, own in rows.items()
            }
            runs = [
                run
                for each in candidates
                if each.passage_id in passages
                for run in equal_runs(each.passage_id, passages[each.passage_id], prompt, each.offset)
            ]
            chosen = disjoint_runs(runs, len(prompt))
            places = {run.passage_id: dict(islice(rows[run.passage_id].items(), MAX_HOLDERS)) for run in chosen}
            found = reading.found_passages([row for own in places.values() for row in own.values()])
        return [_match(run, places[run.passage_id], found) for run in chosen]


def _match(run: Run, places: Mapping[str, int], found: Mapping[int, FoundPassage]) -> TokenMatch:
    holders = tuple(HeldPassage(collection, found[row]) for collection, row in places.items())
    return TokenMatch(run.start, len(run), run.skipped, holders)
