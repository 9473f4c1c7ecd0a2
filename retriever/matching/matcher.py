"""Passages of the catalog in a prompt's tokens."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from kvblend.core.collection_name import DEFAULT_TENANT, tenant_of
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
"""Deleted passages that the indexes may keep, beside as many as there are others."""
NOTHING = GramIndex()


@dataclass(frozen=True)
class HeldPassage:
    """A passage in one of the collections that hold it."""

    collection: str
    found: FoundPassage


@dataclass(frozen=True)
class TokenMatch:
    """Tokens `[start, start + num_tokens)` of a prompt, which are those of a passage from its token `skipped` on.

    `holders`: the tenant's collections that hold it; at least one.
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

    An index is a guess at what to look at; tokens are compared with the catalog's own, of one moment. What is deleted
    is therefore no match from then on. An index keeps and looks at so much of what passages share, so that each tenant
    has one of its own: what others hold hides nothing. Thread-safe.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._indexes, self._row = dict[str, GramIndex](), 0
        """By tenant."""
        self._lock = threading.Lock()
        self._merging = threading.Lock()
        self._is_closed = False
        self.is_behind = False
        """Whether the last match left something for `catch_up`."""

    def __len__(self) -> int:
        """Passages in the indexes, deleted ones among them."""
        return sum(map(len, self._every_index()))

    @property
    def is_empty(self) -> bool:
        """Whether the catalog holds no passage at all."""
        return len(self) == 0 and self._catalog.num_passages() == 0

    @property
    def num_bytes(self) -> int:
        """Of the indexes' tables."""
        return sum(index.num_bytes for index in self._every_index())

    def close(self) -> None:
        """Have `catch_up` return soon."""
        self._is_closed = True

    def follow(self) -> bool:
        """Take up passages that are new, at most a page; whether there may be more."""
        with self._lock:
            page = self._catalog.tokens_behind(self._row, limit=PAGE)
            by_tenant: dict[str, list[tuple[str, NDArray[np.int64]]]] = {}
            for passage in page:
                own = by_tenant.setdefault(tenant_of(passage.collection), [])
                own.append((passage.passage_id, passage.token_ids.astype(np.int64)))
            for tenant, passages in by_tenant.items():
                self._indexes.setdefault(tenant, GramIndex()).add(passages)
            self._row = page[-1].row if page else self._row
        return len(page) == PAGE

    def catch_up(self) -> None:
        """Take up all that is new, put tables together, and begin anew where most of the indexes is of what is gone."""
        with self._merging:
            if len(self) > SPARE + 2 * self._catalog.num_passages():
                with self._lock:
                    self._indexes, self._row = {}, 0
            while not self._is_closed and self.follow():
                for index in self._every_index():
                    while index.merge(BULK_FANOUT):
                        pass
            for index in self._every_index():
                while not self._is_closed and index.merge():
                    pass

    def match(self, token_ids: Sequence[int], tenant: str = DEFAULT_TENANT) -> list[TokenMatch]:
        """The passages of a tenant's collections in a prompt, in its order, no two of them overlapping."""
        is_behind = self.follow()
        index = self._indexes.get(tenant, NOTHING)
        self.is_behind = is_behind or index.num_tables > MAX_TABLES
        prompt = np.asarray(token_ids, np.int64)
        candidates = index.candidates(prompt)
        if not candidates:
            return []
        with self._catalog.reading_all() as reading:
            rows: dict[str, dict[str, int]] = {}
            for collection, own in reading.rows_by_collection({each.passage_id for each in candidates}).items():
                if tenant_of(collection) == tenant:
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

    def _every_index(self) -> list[GramIndex]:
        with self._lock:
            return list(self._indexes.values())


def _match(run: Run, places: Mapping[str, int], found: Mapping[int, FoundPassage]) -> TokenMatch:
    holders = tuple(HeldPassage(collection, found[row]) for collection, row in places.items())
    return TokenMatch(run.start, len(run), run.skipped, holders)
