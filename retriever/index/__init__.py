"""The vector index: parts in mapped files that grow at the end and are merged beside queries; follows the catalog."""

from kvblend.retriever.index.keeper import IndexKeeper
from kvblend.retriever.index.merge import IndexSizes
from kvblend.retriever.index.passage_index import PassageIndex
from kvblend.retriever.index.snapshot import Snapshot

__all__ = ["IndexKeeper", "IndexSizes", "PassageIndex", "Snapshot"]
