"""Documents and their way in."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from kvblend.core.rest.request import FewFields, Request

__all__ = [
    "Document",
    "DocumentCreate",
    "DocumentList",
    "DocumentPassage",
    "DocumentPassages",
    "IngestJob",
]


class DocumentCreate(Request):
    """One document as JSON. Without an id the name is the id; without either, a hash of the text."""

    id: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    name: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    text: Annotated[str, Field(min_length=1)]
    media_type: Literal["text/plain", "text/markdown", "text/html", "text/csv"] = "text/plain"
    metadata: Annotated[dict[str, str | int | float | bool], FewFields] = Field(default_factory=dict)


class Document(BaseModel):
    """A document as it stands. Times are seconds since the epoch."""

    id: str
    name: str
    media_type: str
    num_passages: int
    num_tokens: int
    metadata: dict[str, Any] = {}
    created_at: float


class DocumentList(BaseModel):
    documents: list[Document]
    next_after: str | None = None


class DocumentPassage(BaseModel):
    """A passage where it stands in a document."""

    passage_id: str
    text: str
    num_tokens: int


class DocumentPassages(BaseModel):
    """A page of a document's passages, in order; `next_after` is the `after` of the next page."""

    passages: list[DocumentPassage]
    next_after: int | None = None


class IngestJob(BaseModel):
    """Progress of one ingest. Passages: all, those encoded now, those whose KV was there already, and those that are
    left to be encoded at their first use. `failures` says by id why documents were not taken: the others are, and the
    job fails at its end."""

    id: str
    collection: str
    status: Literal["queued", "running", "succeeded", "failed"]
    document_ids: list[str] = []
    passages_total: int = 0
    passages_encoded: int = 0
    passages_reused: int = 0
    passages_deferred: int = 0
    tokens_encoded: int = 0
    seconds: float = 0.0
    error: str | None = None
    failures: dict[str, str] = {}

    @property
    def passages_done(self) -> int:
        return self.passages_encoded + self.passages_reused + self.passages_deferred
