"""What an ingest is going to do, what it did, and what a search finds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvblend.retriever.packing import PassageText
from kvblend.retriever.records import DocumentRecord, NewDocument, PassageRecord

__all__ = ["Hit", "IngestPlan", "IngestResult", "distinct"]


def distinct(passages: Sequence[PassageText] | Sequence[PassageRecord]) -> tuple[str, ...]:
    """The ids of passages, each once, in order."""
    return tuple(dict.fromkeys(passage.passage_id for passage in passages))


@dataclass(frozen=True)
class IngestPlan:
    """How a document differs from what its collection holds. Passage ids are distinct, in the document's order.

    `new` ones are not in the collection yet, `kept` ones are; `dropped` ones belong to the document's old
    version alone and go with it. An `unchanged` document was neither parsed nor split.
    """

    collection: str
    document: NewDocument
    unchanged: bool
    passages: tuple[PassageText, ...]
    new: tuple[str, ...]
    kept: tuple[str, ...]
    dropped: tuple[str, ...]

    @classmethod
    def of_unchanged(cls, collection: str, document: NewDocument, passages: Sequence[PassageRecord]) -> "IngestPlan":
        """The plan of a document that is in the catalog as it is."""
        texts = tuple(PassageText(passage.text, passage.token_ids) for passage in passages)
        return cls(collection, document, True, texts, (), distinct(passages), ())

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
    """A passage found. `score` is its cosine similarity to the query; the document is the first that holds it."""

    document_id: str
    document_name: str
    passage_id: str
    text: str
    token_ids: tuple[int, ...]
    score: float
    metadata: dict[str, Any]

    @classmethod
    def of(cls, passage: PassageRecord, document: DocumentRecord, *, score: float) -> "Hit":
        return cls(
            document_id=document.id,
            document_name=document.name,
            passage_id=passage.passage_id,
            text=passage.text,
            token_ids=passage.token_ids,
            score=score,
            metadata=document.metadata,
        )
