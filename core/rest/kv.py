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


class TierStats(BaseModel, defer_build=True):
    """One tier of the store, in bytes.

    `num_evicted`: files that made room for others, or moved to a slower tier, since its folder's index was made; and
    `evicted_idle_s`, the seconds since each had been used last, in all. Of tiers with a folder alone.
    """

    name: str
    """As reports and metrics name it."""
    path: str
    """Its folder, or its address."""
    budget_bytes: int
    """The most that it may take; 0 where it has no bound of ours."""
    used_bytes: int
    """What its files take; 0 of tiers that others keep."""
    num_files: int
    """One for each passage, encode context and tensor-parallel rank."""
    num_pinned: int
    """Of these, kept from eviction."""
    num_evicted: int = 0
    evicted_idle_s: float = 0.0


class KVStats(BaseModel, defer_build=True):
    tiers: list[TierStats]
    """Fastest first."""


class KVCollection(Request):
    """A collection; the operator may name another tenant's: `<tenant>/<name>`."""

    collection: CollectionPath
    """The collection's name."""


class KVSelection(KVCollection):
    """The KV of a collection's passages: of all, of one document's, of those named."""

    document_id: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Only this document's passages."""
    passage_ids: Annotated[list[str], Field(min_length=1, max_length=10_000)] | None = None
    """Only these passages."""


class KVCompress(KVSelection):
    """By which codec the raw files of a selection are encoded anew, where that makes them smaller."""

    codec: Literal["int8", "entropy", "fp8", "int4"] = "entropy"
    """Which codec encodes; [store.md](store.md) has the cost of each."""


class KVCompressed(BaseModel, defer_build=True):
    """Files that were encoded anew, and the bytes that this freed."""

    num_files: int
    """That are smaller now."""
    saved_bytes: int
    """That they took more before."""


class KVMove(KVSelection):
    """`faster`: to the fastest tier that all processes share; `slower`: out of the fastest that has it."""

    to: Literal["faster", "slower"]
    """Where to."""


class KVFile(BaseModel, defer_build=True):
    """One file of passage KV. `owner` is whoever it was stored for.

    `used_at`: when it was last used, or stored, in seconds since the epoch. `num_uses`: what the tier's eviction policy
    has of its uses: those since it was stored, or since the policy last spared it, which uses them up.
    """

    tier: str
    """Where it lies."""
    model_fingerprint: str
    """Of the model that it was computed by."""
    passage_id: str
    """The hash of its tokens."""
    encode_context: str
    """The hash of the tokens that it was encoded behind."""
    heads: tuple[int, int]
    """The KV heads `[first, end)` that it has of each layer."""
    num_bytes: int
    """As it is stored."""
    used_at: float
    num_uses: int
    pinned: bool
    """Whether it is kept from eviction."""
    owner: str


class KVLookup(BaseModel, defer_build=True):
    """Files by tier, fastest first, and the ids of passages that have none."""

    files: list[KVFile]
    """By tier, fastest first."""
    missing: list[str]
    """Ids of passages without any."""


class KVPairSelection(KVCollection):
    """How many of a collection's pairs, the heaviest first."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 20
    """So many at most."""


class KVPair(BaseModel, defer_build=True):
    """Two passages that prompts bring together, by their ids: `passage` directly behind `before`.

    `count`: 1 for each prompt in which they stood so, 0.3 for each that retrieved both, halved with every 2,000 prompts
    of the collection since. Neighbours in one document are not counted: their KV fits anyhow.
    """

    before: str
    passage: str
    count: float


class KVPairs(BaseModel, defer_build=True):
    pairs: list[KVPair]
    """The heaviest first."""


class KVCount(BaseModel, defer_build=True):
    """How many files it was done to; a passage has one in each tier for each tensor-parallel rank."""

    num_files: int
    """That it was done to."""


class KVSweep(BaseModel, defer_build=True):
    num_passages: int
    """Whose KV was deleted."""


class KVVerifyReport(BaseModel, defer_build=True):
    """What was read, which files were put aside, by tier and name, and how many dead writers' files were removed."""

    num_files: int
    """That were read."""
    num_bytes: int
    """That were read."""
    quarantined: list[str]
    """Files that were damaged and put aside."""
    num_temporary_removed: int
    """Unfinished files of dead writers."""
