"""The passages around those that were found, in their documents."""

from collections.abc import Sequence

from kvblend.retriever.catalog_reading import CollectionReading
from kvblend.retriever.records import FoundPassage

__all__ = ["with_neighbors"]


def with_neighbors(reading: CollectionReading, found: Sequence[FoundPassage], num_around: int) -> list[FoundPassage]:
    """Passages found, best first, and so many before and after each in its document; none twice.

    What touches in a document is one stretch in the document's order; stretches are in the order of the best passage
    found in each.
    """
    documents: dict[str, dict[int, FoundPassage]] = {}
    ranks: dict[tuple[str, int], int] = {}
    for rank, each in enumerate(found):
        around = {each.position: each, **reading.surrounding(each, num_around)}
        documents.setdefault(each.document.id, {}).update(around)
        ranks[each.document.id, each.position] = rank
    stretches: list[tuple[int, list[FoundPassage]]] = []
    for places in documents.values():
        stretch: list[FoundPassage] = []
        for position in sorted(places):
            if stretch and position > stretch[-1].position + 1:
                stretches.append((_best_rank(stretch, ranks), stretch))
                stretch = []
            stretch.append(places[position])
        stretches.append((_best_rank(stretch, ranks), stretch))
    ordered: dict[int, FoundPassage] = {}
    for _, stretch in sorted(stretches, key=lambda item: item[0]):
        for each in stretch:
            ordered.setdefault(each.passage.row, each)
    return list(ordered.values())


def _best_rank(stretch: Sequence[FoundPassage], ranks: dict[tuple[str, int], int]) -> int:
    return min(rank for each in stretch if (rank := ranks.get((each.document.id, each.position))) is not None)
