"""Retrieval, and answers from what was retrieved."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from kvblend.core.report import BlendReport
from kvblend.core.rest.blending import BlendChoices
from kvblend.core.rest.request import Request
from kvblend.core.rest.retrieval import RetrievalChoices

__all__ = [
    "HistoryMessage",
    "QueryDelta",
    "QueryRequest",
    "QueryResponse",
    "SearchRequest",
    "SearchResponse",
    "Source",
    "Usage",
]


class Source(BaseModel, defer_build=True):
    """A retrieved passage, in the order of retrieval. `score` is the cosine similarity, in the mode keyword BM25, and
    the reranker's own where it reranked; None where the caller supplied the passage, where it has no vector yet, and of
    a `neighbor`, which came along with a passage of its document that was found. `place` is where it stands among the
    passages of the prompt, from 0; None where there is no prompt."""

    document_id: str | None = None
    """Of the document that the passage is shown in."""
    document_name: str | None = None
    """That document's name."""
    passage_id: str
    """The hash of its tokens, by which KV is named too."""
    text: str
    """The passage's own text."""
    score: float | None = None
    metadata: dict[str, Any] = {}
    """The document's."""
    neighbor: bool = False
    place: int | None = None


class HistoryMessage(Request):
    """What was said before the question."""

    role: Literal["user", "assistant"]
    """Who said it."""
    content: Annotated[str, Field(min_length=1, max_length=32_768)]
    """What was said."""


class QueryRequest(BlendChoices, RetrievalChoices):
    """Ask a collection. `history`: the conversation so far, oldest first, which stands in front of the question in the
    prompt. `rewrite`: whether passages are retrieved for the question as vLLM rewrites it, from the history, to stand
    alone."""

    question: Annotated[str, Field(min_length=1, max_length=32_768)]
    """What is asked, and retrieved for."""
    history: list[HistoryMessage] = Field(default_factory=list, max_length=64)
    rewrite: bool = False
    stream: bool = False
    """Whether the answer comes as server-sent events."""
    max_tokens: Annotated[int, Field(ge=1, le=8192)] = 128
    """The longest answer."""
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 0.0
    """0 answers greedily."""


class Usage(BaseModel, defer_build=True):
    prompt_tokens: int
    """Of the whole prompt, the context among them."""
    completion_tokens: int
    """Of the answer."""


class QueryResponse(BaseModel, defer_build=True):
    """The answer. Streamed, it is the data of the last event, `done`. `rewritten`: what passages were retrieved for,
    where the question was rewritten. `retrieve_ms`: what finding the passages and putting them in order took, before
    the prompt was made."""

    id: str
    """Made for this answer."""
    answer: str
    """The text."""
    sources: list[Source]
    """The passages that were retrieved, best first."""
    report: BlendReport
    """How the context was made."""
    usage: Usage
    """Tokens, as vLLM counts them."""
    finish_reason: str | None = None
    """vLLM's: `stop` at the answer's own end, `length` at `max_tokens`."""
    rewritten: str | None = None
    retrieve_ms: float | None = None


class QueryDelta(BaseModel, defer_build=True):
    """Data of a streamed `delta` event; before it one `sources` event holds a SearchResponse."""

    text: str


class SearchRequest(RetrievalChoices):
    """Retrieve from a collection, and answer nothing."""

    query: Annotated[str, Field(min_length=1, max_length=32_768)]
    """What to retrieve for."""


class SearchResponse(BaseModel, defer_build=True):
    sources: list[Source]
    """The passages, best first."""
