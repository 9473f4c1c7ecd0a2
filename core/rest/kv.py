"""Passage KV as an operator sees and handles it."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from kvblend.core.rest.request import CollectionPath, Request

__all__ = [
    "KVCollection",
    "KVCompress",
    "KVCompressed",
    "KVCount",
    "KVFile",
    "KVLookup",
    "KVMove",
    "KVPair",
    "KVPairSelection",
    "KVPairs",
    "KVSelection",
    "KVStats",
    "KVSweep",
    "KVVerifyReport",
    "TierStats",
]


class TierStats(BaseModel):
    """One tier of the store, in bytes.

    `num_evicted`: files that made room for others, or moved to a slower tier, since its folder's index was made; and
    `evicted_idle_s`, the seconds since each had been used last, in all. Of tiers with a folder alone.
    """

    name: str
    path: str
    budget_bytes: int
    used_bytes: int
    num_files: int
    num_pinned: int
    num_evicted: int = 0
    evicted_idle_s: float = 0.0


class KVStats(BaseModel):
    tiers: list[TierStats]


class KVCollection(Request):
    """A collection; the operator may name another tenant's: `<tenant>/<name>`."""

    collection: CollectionPath


class KVSelection(KVCollection):
    """The KV of a collection's passages: of all, of one document's, of those named."""

    document_id: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    passage_ids: Annotated[list[str], Field(min_length=1, max_length=10_000)] | None = None


class KVCompress(KVSelection):
    """By which codec the raw files of a selection are encoded anew, where that makes them smaller."""

    codec: Literal["int8", "entropy", "fp8", "int4"] = "entropy"


class KVCompressed(BaseModel):
    """Files that were encoded anew, and the bytes that this freed."""

    num_files: int
    saved_bytes: int


class KVMove(KVSelection):
    """`faster`: to the fastest tier that all processes share; `slower`: out of the fastest that has it."""

    to: Literal["faster", "slower"]


class KVFile(BaseModel):
    """One file of passage KV. `owner` is whoever it was stored for.

    `used_at`: when it was last used, or stored, in seconds since the epoch. `num_uses`: what the tier's eviction policy
    has of its uses: those since it was stored, or since the policy last spared it, which uses them up.
    """

    tier: str
    model_fingerprint: str
    passage_id: str
    encode_context: str
    heads: tuple[int, int]
    num_bytes: int
    used_at: float
    num_uses: int
    pinned: bool
    owner: str


class KVLookup(BaseModel):
    """Files by tier, fastest first, and the ids of passages that have none."""

    files: list[KVFile]
    missing: list[str]


class KVPairSelection(KVCollection):
    """How many of a collection's pairs, the heaviest first."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 20


class KVPair(BaseModel):
    """Two passages that prompts bring together, by their ids: `passage` directly behind `before`.

    `count`: 1 for each prompt in which they stood so, 0.3 for each that retrieved both, halved with every 2,000 prompts
    of the collection since. Neighbours in one document are not counted: their KV fits anyhow.
    """

    before: str
    passage: str
    count: float


class KVPairs(BaseModel):
    pairs: list[KVPair]


class KVCount(BaseModel):
    """How many files it was done to; a passage has one in each tier for each tensor-parallel rank."""

    num_files: int


class KVSweep(BaseModel):
    num_passages: int


class KVVerifyReport(BaseModel):
    """What was read, which files were put aside, by tier and name, and how many dead writers' files were removed."""

    num_files: int
    num_bytes: int
    quarantined: list[str]
    num_temporary_removed: int
