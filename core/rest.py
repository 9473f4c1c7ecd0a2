"""REST schemas, shared by the service and the SDK. Routes: docs/api.md."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from kvblend.core.plan import SelectorName
from kvblend.core.report import BlendReport

__all__ = [
    "BlendOptions",
    "CalibrationState",
    "Collection",
    "CollectionCreate",
    "CollectionList",
    "CollectionUpdate",
    "Document",
    "DocumentCreate",
    "DocumentList",
    "ErrorBody",
    "ErrorResponse",
    "GuardState",
    "IngestJob",
    "KVCompress",
    "KVCompressed",
    "KVCount",
    "KVFile",
    "KVLookup",
    "KVMove",
    "KVSelection",
    "KVStats",
    "KVSweep",
    "KVVerifyReport",
    "QueryDelta",
    "QueryRequest",
    "QueryResponse",
    "SearchRequest",
    "SearchResponse",
    "Source",
    "SuppliedDocument",
    "TierStats",
    "Usage",
]

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Ratio = Annotated[float, Field(ge=0.0, le=1.0)]
TopK = Annotated[int, Field(ge=1, le=64)]
Reuse = Literal["blend", "prefix_cache", "none"]
TargetKL = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
QuotaBytes = Annotated[int, Field(ge=0, le=1 << 60)]
TTLSeconds = Annotated[float, Field(ge=1.0, le=1e9)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Wishes(_Request):
    """How to blend, where a request says so: at a ratio, or at the smallest that is calibrated for a mean KL to full
    prefill (nats) of at most `target_kl`; by which selector; and `reuse`: `blend`, or, for comparison, vLLM's
    `prefix_cache` alone, or `none`."""

    recompute_ratio: Ratio | None = None
    target_kl: TargetKL | None = None
    selector: SelectorName | None = None
    reuse: Reuse = "blend"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.recompute_ratio is not None and self.target_kl is not None:
            raise ValueError("give one of recompute_ratio and target_kl")
        return self


class CollectionUpdate(_Request):
    """Limits of a collection's KV, which an update changes where it names them; None is no limit.

    `kv_quota_bytes`: as much as it may take in any one tier of a host; what its policy gives up first goes.
    `kv_ttl_s`: what no request has used for so many seconds is deleted, but for what is pinned.
    """

    kv_quota_bytes: QuotaBytes | None = None
    kv_ttl_s: TTLSeconds | None = None


class CollectionCreate(CollectionUpdate):
    """A new collection. What is None takes the service's default; none of it but the limits can change later."""

    name: Name
    preamble: Annotated[str, Field(min_length=1, max_length=16_384)] | None = None
    warm_context: Annotated[str, Field(max_length=65_536)] | None = None
    passage_tokens: Annotated[int, Field(ge=32, le=2048)] = 256


class Collection(BaseModel):
    """A collection as it stands."""

    name: str
    model: str
    embedding_model: str
    preamble: str
    warm_context: str
    passage_tokens: int
    num_documents: int
    num_passages: int
    created_at: float
    kv_quota_bytes: int | None = None
    kv_ttl_s: float | None = None


class CollectionList(BaseModel):
    collections: list[Collection]


class DocumentCreate(_Request):
    """One document as JSON. Without an id the name is the id; without either, a hash of the text."""

    id: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    name: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    text: Annotated[str, Field(min_length=1)]
    media_type: Literal["text/plain", "text/markdown", "text/html"] = "text/plain"
    metadata: dict[str, str | int | float | bool] = {}


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


class Source(BaseModel):
    """A retrieved passage. `score` is the cosine similarity; None where the caller supplied the passage."""

    document_id: str | None = None
    document_name: str | None = None
    passage_id: str
    text: str
    score: float | None = None
    metadata: dict[str, Any] = {}


class QueryRequest(_Wishes):
    """Ask a collection."""

    question: Annotated[str, Field(min_length=1, max_length=32_768)]
    top_k: TopK = 8
    stream: bool = False
    max_tokens: Annotated[int, Field(ge=1, le=8192)] = 128
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 0.0


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int


class QueryResponse(BaseModel):
    """The answer. Streamed, it is the data of the last event, `done`."""

    id: str
    answer: str
    sources: list[Source]
    report: BlendReport
    usage: Usage
    finish_reason: str | None = None


class QueryDelta(BaseModel):
    """Data of a streamed `delta` event; before it one `sources` event holds a SearchResponse."""

    text: str


class SearchRequest(_Request):
    query: Annotated[str, Field(min_length=1, max_length=32_768)]
    top_k: TopK = 8


class SearchResponse(BaseModel):
    sources: list[Source]


class SuppliedDocument(_Request):
    """A passage that the caller retrieved itself."""

    text: Annotated[str, Field(min_length=1)]
    id: str | None = None
    metadata: dict[str, Any] = {}


class BlendOptions(_Wishes):
    """The `kvblend` field of an OpenAI request: passages to blend in front of the last user message."""

    documents: Annotated[list[SuppliedDocument | Annotated[str, Field(min_length=1)]], Field(max_length=64)] = []
    collection: Name | None = None


class TierStats(BaseModel):
    """One tier of the store, in bytes."""

    name: str
    path: str
    budget_bytes: int
    used_bytes: int
    num_files: int
    num_pinned: int


class KVStats(BaseModel):
    tiers: list[TierStats]


class KVSelection(_Request):
    """The KV of a collection's passages: of all, of one document's, of those named."""

    collection: Name
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
    """One file of passage KV. `used_at` is in seconds since the epoch; `owner` is whoever it was stored for."""

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


class CalibrationState(BaseModel):
    """How the served model is held to a calibration: `uncalibrated` blends at the default ratio, `calibrated` at the
    calibration's, `unable` not at all."""

    status: Literal["uncalibrated", "calibrated", "unable"]
    target_kl: float | None = None
    recompute_ratio: float | None = None
    warning: str | None = None


class GuardState(BaseModel):
    """What the live guard has found: KL in nats of full prefill to the blend, mean over the last answers compared; and
    over those of them that are held to a target, beside the mean of their targets. `above_target` needs ten of these.
    """

    num_compared: int
    mean_kl: float | None
    num_held: int
    mean_held_kl: float | None
    mean_target_kl: float | None
    above_target: bool


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """OpenAI's error shape."""

    error: ErrorBody
