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
    """By which the document is asked for."""
    name: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Shown with its passages."""
    text: Annotated[str, Field(min_length=1)]
    """The document."""
    media_type: Literal["text/plain", "text/markdown", "text/html", "text/csv"] = "text/plain"
    """How the text is read."""
    metadata: Annotated[dict[str, str | int | float | bool], FewFields] = Field(default_factory=dict)
    """What filters ask for, and sources show."""


class Document(BaseModel, defer_build=True):
    """A document as it stands. Times are seconds since the epoch."""

    id: str
    """By which it is asked for."""
    name: str
    """Shown with its passages."""
    media_type: str
    """How it was read."""
    num_passages: int
    """Into which it was split."""
    num_tokens: int
    """Of all its passages."""
    metadata: dict[str, Any] = {}
    """As it was given."""
    created_at: float
    """When it was committed last."""


class DocumentList(BaseModel, defer_build=True):
    documents: list[Document]
    """By id."""
    next_after: str | None = None
    """The `after` of the next page; null on the last one."""


class DocumentPassage(BaseModel, defer_build=True):
    """A passage where it stands in a document."""

    passage_id: str
    """The hash of its tokens, by which KV is named too."""
    text: str
    """The passage's own text."""
    num_tokens: int
    """By the served model's tokenizer."""


class DocumentPassages(BaseModel, defer_build=True):
    """A page of a document's passages, in order; `next_after` is the `after` of the next page."""

    passages: list[DocumentPassage]
    """In the document's order."""
    next_after: int | None = None


class IngestJob(BaseModel, defer_build=True):
    """Progress of one ingest. Passages: all, those encoded now, those whose KV was there already, and those that are
    left to be encoded at their first use. `failures` says by id why documents were not taken: the others are, and the
    job fails at its end."""

    id: str
    """By which the job is asked for."""
    collection: str
    """Where the documents go."""
    status: Literal["queued", "running", "succeeded", "failed"]
    """How far it is; the last two are ends."""
    document_ids: list[str] = []
    """Of the documents that the job is of."""
    passages_total: int = 0
    """In all; it grows while documents are parsed."""
    passages_encoded: int = 0
    """Whose KV was computed now."""
    passages_reused: int = 0
    """Whose KV was there."""
    passages_deferred: int = 0
    """That are left for their first use."""
    tokens_encoded: int = 0
    """That vLLM prefilled for it."""
    seconds: float = 0.0
    """Since it began, or that it took."""
    error: str | None = None
    """Why it failed."""
    failures: dict[str, str] = {}

    @property
    def passages_done(self) -> int:
        return self.passages_encoded + self.passages_reused + self.passages_deferred
