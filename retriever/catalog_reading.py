"""What the catalog holds as of one moment: everything that is read within one transaction."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from sqlite3 import Connection

import numpy as np
from numpy.typing import NDArray

from kvblend.retriever.found_passages import EVERYWHERE, found_passages, surrounding_passages
from kvblend.retriever.passage_table import passage_vectors, rows_by_collection, token_arrays
from kvblend.retriever.records import CollectionState, FoundPassage

__all__ = ["CatalogReading", "CollectionReading"]


@dataclass(frozen=True)
class CollectionReading:
    """A collection as of one moment, within a read transaction."""

    state: CollectionState
    connection: Connection

    def found_passages(
        self, rows: Sequence[int], where: tuple[str, Sequence[object]] = EVERYWHERE
    ) -> dict[int, FoundPassage]:
        """By row, passages each with the first of their documents that an expression over documents `d`, with its
        parameters, lets through; a row not there is left out."""
        return found_passages(self.connection, rows, where)

    def surrounding(self, found: FoundPassage, num_around: int) -> dict[int, FoundPassage]:
        """By position, a passage and so many before and after it in its document."""
        return surrounding_passages(self.connection, self.state.key, found, num_around)

    def vectors(self, rows: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        """The vectors of passages by row; a row not there is left out."""
        return passage_vectors(self.connection, rows)


@dataclass(frozen=True)
class CatalogReading:
    """All collections as of one moment, within a read transaction."""

    connection: Connection

    def rows_by_collection(self, passage_ids: Collection[str]) -> dict[str, dict[str, int]]:
        """By collection and passage id, the rows of those of these passages that are there; oldest collection first."""
        return rows_by_collection(self.connection, passage_ids)

    def token_arrays(self, rows: Collection[int]) -> dict[int, NDArray[np.int32]]:
        """Token ids of passages by row; a row not there is left out."""
        return token_arrays(self.connection, rows)

    def found_passages(self, rows: Sequence[int]) -> dict[int, FoundPassage]:
        """By row, passages each with the first of their documents; a row not there is left out."""
        return found_passages(self.connection, rows)
