"""Search within a collection: words, metadata filters, fusion of rankings, neighbors of what was found."""

from kvblend.retriever.search.neighbors import with_neighbors
from kvblend.retriever.search.passage_search import PassageSearch

__all__ = ["PassageSearch", "with_neighbors"]
