"""Collections and their limits."""

from typing import Annotated

from pydantic import BaseModel, Field

from kvblend.core.rest.blending import OrderName
from kvblend.core.rest.request import Name, Request
from kvblend.core.rest.retrieval import SearchMode

__all__ = [
    "Collection",
    "CollectionCreate",
    "CollectionList",
    "CollectionRebuild",
    "CollectionUpdate",
    "QuotaBytes",
    "TTLSeconds",
]

PassageTokens = Annotated[int, Field(ge=32, le=2048)]
QuotaBytes = Annotated[int, Field(ge=0, le=1 << 60)]
TTLSeconds = Annotated[float, Field(ge=1.0, le=1e9)]


class CollectionUpdate(Request):
    """What of a collection an update changes, where it names it; None is no limit.

    `kv_quota_bytes`: as much as it may take in any one tier of a host; what its policy gives up first goes.
    `kv_ttl_s`: what no request has used for so many seconds is deleted, but for what is pinned.
    `order`: of passages in prompts, where a request names none; None is `rank`.
    `mode`: how passages are searched, where a request does not say; None is `hybrid`.
    """

    kv_quota_bytes: QuotaBytes | None = None
    kv_ttl_s: TTLSeconds | None = None
    order: OrderName | None = None
    mode: SearchMode | None = None


class CollectionCreate(CollectionUpdate):
    """A new collection. What is None takes the service's default; none of it but the limits can change later.

    `warm_context`: what passages are encoded behind, the preamble aside: `document` (the default), the text that
    precedes them in their own document; `neutral`, the service's own text; or any other text.
    """

    name: Name
    """Letters, digits, `_`, `.` and `-`."""
    preamble: Annotated[str, Field(min_length=1, max_length=16_384)] | None = None
    """The instruction that its prompts begin with."""
    warm_context: Annotated[str, Field(max_length=65_536)] | None = None
    passage_tokens: PassageTokens = 256
    """The longest passage."""


class CollectionRebuild(Request):
    """How a collection's documents are split anew. `passage_tokens`: None leaves it as it is."""

    passage_tokens: PassageTokens | None = None


class Collection(BaseModel, defer_build=True):
    """A collection as it stands."""

    name: str
    """By which it is asked for."""
    model: str
    """Whose tokenizer split its documents."""
    embedding_model: str
    """Which made its vectors."""
    preamble: str
    """What its prompts begin with."""
    warm_context: str
    """What its passages are encoded behind: `document`, `neutral` or a text."""
    passage_tokens: int
    """The longest passage."""
    num_documents: int
    """That are committed."""
    num_passages: int
    """Of all of them; one that two documents have counts once."""
    created_at: float
    """In seconds since the epoch."""
    kv_quota_bytes: int | None = None
    """The most that its KV may take in any one tier of a host; null: no limit."""
    kv_ttl_s: float | None = None
    """Seconds without use after which KV is deleted; null: never."""
    order: OrderName = "rank"
    """Of passages in its prompts, where a request names none."""
    mode: SearchMode = "hybrid"
    """Of its searches, where a request names none."""


class CollectionList(BaseModel, defer_build=True):
    collections: list[Collection]
    """By name."""
