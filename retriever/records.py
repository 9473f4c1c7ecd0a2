"""What the catalog gives back."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from sqlite3 import Row
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DOCUMENT_COLUMNS",
    "CatalogChange",
    "CollectionRecord",
    "CollectionSettings",
    "CollectionState",
    "DocumentRecord",
    "FoundPassage",
    "NewDocument",
    "PassageRecord",
    "PassageTokens",
    "Place",
]

DOCUMENT_COLUMNS = "id, name, media_type, content_hash, metadata, num_passages, num_tokens, created_at"
"""The columns of a document that make a DocumentRecord."""


@dataclass(frozen=True)
class CollectionSettings:
    """What a collection was made with; counts nothing, and so costs one look-up."""

    name: str
    passage_tokens: int
    settings: dict[str, Any]

    @classmethod
    def from_row(cls, row: Row) -> Self:
        return cls(**{**dict(row), "settings": json.loads(row["settings"])})


@dataclass(frozen=True)
class CollectionRecord(CollectionSettings):
    """A collection as it stands, with all that is in it counted."""

    created_at: float
    num_documents: int
    num_passages: int


@dataclass(frozen=True)
class CollectionState:
    """What tells a collection from another that has or had its name, and one state of it from another.

    `key` is never used twice; `version` is another random value after each change of the passages.
    """

    key: int
    version: bytes


@dataclass(frozen=True)
class NewDocument:
    """A document to be put into the catalog. `content_hash` tells whether its passages have changed."""

    id: str
    name: str
    media_type: str
    content_hash: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class DocumentRecord:
    """A document. `num_passages` and `num_tokens` count a passage each time it occurs in the document."""

    id: str
    name: str
    media_type: str
    content_hash: str
    metadata: dict[str, Any]
    num_passages: int
    num_tokens: int
    created_at: float

    @classmethod
    def from_row(cls, row: Row | dict[str, Any]) -> "DocumentRecord":
        return cls(**{**dict(row), "metadata": _metadata(row["metadata"])})


@dataclass(frozen=True)
class PassageRecord:
    """A passage of a collection; `row` is its number there, which no other passage ever gets again."""

    row: int
    passage_id: str
    text: str
    token_ids: tuple[int, ...]

    @classmethod
    def from_row(cls, row: Row) -> "PassageRecord":
        token_ids = np.frombuffer(row["token_ids"], dtype="<i4").tolist()
        return cls(row["row"], row["passage_id"], row["text"], tuple(token_ids))


class PassageTokens(NamedTuple):
    """A passage of a collection by its tokens alone: int32."""

    row: int
    collection: str
    passage_id: str
    token_ids: NDArray[np.int32]


class Place(NamedTuple):
    """A passage in a document of a collection; `context` is the caller's own name for what precedes it there."""

    collection: str
    context: str
    passage_id: str


@dataclass(frozen=True)
class FoundPassage:
    """A passage with the first of its documents and its position there; `contexts` are those of its first places."""

    passage: PassageRecord
    document: DocumentRecord
    position: int
    contexts: tuple[str, ...]


@dataclass(frozen=True)
class CatalogChange:
    """What a write did to a collection's passages: from passage ids to rows, and the version before and after.
    `embedded` were there without a vector."""

    collection_key: int
    new: dict[str, int]
    dropped: dict[str, int]
    old_version: bytes
    version: bytes
    embedded: Mapping[str, int] = field(default_factory=dict)


def _metadata(stored: str) -> dict[str, Any]:
    """A document's metadata; half surrogate pairs, which earlier versions took, become question marks."""
    metadata: dict[str, Any] = json.loads(stored)
    if "\\ud" in stored:
        metadata = json.loads(json.dumps(metadata, ensure_ascii=False).encode("utf-8", "replace"))
    return metadata
