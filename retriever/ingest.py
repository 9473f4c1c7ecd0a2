"""What an ingest is going to do, what it did, and what a search finds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvblend.retriever.packing import PassageText
from kvblend.retriever.records import DocumentRecord, FoundPassage, NewDocument, PassageRecord

__all__ = ["Hit", "IngestPlan", "IngestResult", "distinct"]


def distinct(passages: Sequence[PassageText] | Sequence[PassageRecord]) -> tuple[str, ...]:
    """The ids of passages, each once, in order."""
    return tuple(dict.fromkeys(passage.passage_id for passage in passages))


@dataclass(frozen=True)
class IngestPlan:
    """How a document differs from what its collection holds. Passage ids are distinct, in the document's order.

    `new` ones are not in the collection yet, `kept` ones are; `dropped` ones belong to the document's old
    version alone and go with it. An `unchanged` document was neither parsed nor split. `contexts` are the caller's, of
    each passage: see `Place`. `source` is the document itself, which is kept.
    """

    collection: str
    document: NewDocument
    unchanged: bool
    passages: tuple[PassageText, ...]
    new: tuple[str, ...]
    kept: tuple[str, ...]
    dropped: tuple[str, ...]
    contexts: tuple[str, ...] = ()
    source: bytes = b""

    @classmethod
    def of_unchanged(
        cls, collection: str, document: NewDocument, passages: Sequence[PassageRecord], source: bytes
    ) -> "IngestPlan":
        """The plan of a document that is in the catalog as it is."""
        texts = tuple(PassageText(passage.text, passage.token_ids) for passage in passages)
        return cls(collection, document, True, texts, (), distinct(passages), (), source=source)

    @property
    def new_passages(self) -> list[PassageText]:
        """The passages to compute, each once."""
        by_id: Mapping[str, PassageText] = {passage.passage_id: passage for passage in self.passages}
        return [by_id[passage_id] for passage_id in self.new]

    @property
    def num_tokens(self) -> int:
        return sum(len(passage.token_ids) for passage in self.passages)


@dataclass(frozen=True)
class IngestResult:
    """What a commit did: the plan's three sets as they were at that moment, and the document as it stands now."""

    document: DocumentRecord
    new: tuple[str, ...]
    kept: tuple[str, ...]
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class Hit:
    """A passage found, or a neighbor of one. `score`: see `RetrievalChoices`; None: it has none. The document is the
    first that holds it (of those that were asked for), at `position`; `contexts` are those of its places: see `Place`.
    """

    document_id: str
    document_name: str
    passage_id: str
    text: str
    token_ids: tuple[int, ...]
    score: float | None
    metadata: dict[str, Any]
    position: int
    contexts: tuple[str, ...]
    is_neighbor: bool = False

    @classmethod
    def of(cls, found: FoundPassage, *, score: float | None, is_neighbor: bool) -> "Hit":
        passage, document = found.passage, found.document
        return cls(
            document_id=document.id,
            document_name=document.name,
            passage_id=passage.passage_id,
            text=passage.text,
            token_ids=passage.token_ids,
            score=score,
            metadata=document.metadata,
            position=found.position,
            contexts=found.contexts,
            is_neighbor=is_neighbor,
        )
