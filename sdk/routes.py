"""Every route as data: what to send and how to read the answer. The two clients differ only in how they send it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from kvblend.core.calibration import Calibration
from kvblend.core.errors import InvalidRequestError, KVBlendError
from kvblend.core.plan import SelectorName
from kvblend.core.rest import (
    BlendOptions,
    Collection,
    CollectionCreate,
    CollectionList,
    CollectionRebuild,
    CollectionUpdate,
    Document,
    DocumentCreate,
    DocumentList,
    DocumentPassages,
    ErrorResponse,
    HistoryMessage,
    IngestJob,
    KVCompress,
    KVCompressed,
    KVCount,
    KVLookup,
    KVMove,
    KVPair,
    KVPairs,
    KVPairSelection,
    KVSelection,
    KVStats,
    KVSweep,
    KVVerifyReport,
    MetadataFilter,
    OrderName,
    QueryDelta,
    QueryRequest,
    QueryResponse,
    Readiness,
    Reuse,
    SearchMode,
    SearchRequest,
    SearchResponse,
    Source,
)
from kvblend.sdk.chat import ChatChunk, ChatCompletion, blend_field
from kvblend.sdk.errors import error_of
from kvblend.sdk.sse import ServerSentEvent

__all__ = ["Call", "CollectionLimits", "QueryEvent", "QueryFields", "RetrievalFields", "StreamCall", "checked"]

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
QueryEvent = SearchResponse | QueryDelta | QueryResponse
"""What a streamed query yields: the sources once, deltas, and the whole response once."""


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request and the reader of its response's body; `answers` are statuses that have such a body too, beside those
    of success."""

    method: Literal["GET", "POST", "PATCH", "DELETE"]
    path: str
    read: Callable[[bytes], T]
    json: Any = None
    params: Mapping[str, str | int] = field(default_factory=dict)
    answers: tuple[int, ...] = ()


@dataclass(frozen=True)
class StreamCall(Generic[T]):
    """One POST and the reader of each of its events.

    The stream is whole when `read` gives None or `last` holds for an item, and broken off where it ends before.
    """

    path: str
    read: Callable[[ServerSentEvent], T | None]
    last: Callable[[T], bool]
    json: Any


def segment(value: str) -> str:
    """Quote one path segment, which dots alone would turn into a step up the path, and nothing at all into its parent.

    Raises:
        InvalidRequestError: the value is empty.
    """
    if not value:
        raise InvalidRequestError("a name or id in a path must not be empty")
    quoted = quote(value, safe="")
    return quoted.replace(".", "%2E") if set(value) == {"."} else quoted


def checked(model: type[M], **values: Any) -> dict[str, Any]:
    """Validate a request body where it is made, and leave out what is None: the service's default.

    Raises:
        InvalidRequestError: names the field and the bound.
    """
    try:
        return model(**values).model_dump(mode="json", by_alias=True, exclude_none=True)
    except ValidationError as error:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"])
        raise InvalidRequestError(f"{param or 'the request'}: {first['msg']}", param=param or None) from error


def _nothing(_: bytes) -> None:
    return None


def create_collection(**values: Any) -> Call[Collection]:
    return Call("POST", "/v1/collections", Collection.model_validate_json, json=checked(CollectionCreate, **values))


class CollectionLimits(TypedDict, total=False):
    """What of a collection can change: what its KV may take, None is no limit; the order of its passages in prompts;
    the mode of its searches. As `CollectionUpdate` has them."""

    kv_quota_bytes: int | None
    kv_ttl_s: float | None
    order: OrderName | None
    mode: SearchMode | None


class RetrievalFields(TypedDict, total=False):
    """How passages are retrieved, beside their number; as `RetrievalChoices` has it."""

    mode: SearchMode | None
    filter: MetadataFilter | Mapping[str, Any] | None
    min_score: float | None
    neighbors: int
    rerank: bool
    rerank_candidates: int


class QueryFields(RetrievalFields, total=False):
    """What a question may say besides; as `QueryRequest` has it."""

    top_k: int
    recompute_ratio: float | None
    target_kl: float | None
    selector: SelectorName | None
    reuse: Reuse
    order: OrderName | None
    history: Sequence[HistoryMessage | Mapping[str, str]]
    rewrite: bool
    max_tokens: int
    temperature: float
    report_tokens: bool
    report_divergence: bool


def update_collection(name: str, changes: CollectionLimits) -> Call[Collection]:
    checked(CollectionUpdate, **changes)
    return Call("PATCH", f"/v1/collections/{segment(name)}", Collection.model_validate_json, json=dict(changes))


def get_collection(name: str) -> Call[Collection]:
    return Call("GET", f"/v1/collections/{segment(name)}", Collection.model_validate_json)


def list_collections() -> Call[list[Collection]]:
    return Call("GET", "/v1/collections", lambda body: CollectionList.model_validate_json(body).collections)


def rebuild_collection(name: str, **values: Any) -> Call[IngestJob]:
    path = f"/v1/collections/{segment(name)}/rebuild"
    return Call("POST", path, IngestJob.model_validate_json, json=checked(CollectionRebuild, **values))


def delete_collection(name: str) -> Call[None]:
    return Call("DELETE", f"/v1/collections/{segment(name)}", _nothing)


def documents_path(collection: str) -> str:
    return f"/v1/collections/{segment(collection)}/documents"


def add_document(collection: str, **values: Any) -> Call[IngestJob]:
    return Call(
        "POST", documents_path(collection), IngestJob.model_validate_json, json=checked(DocumentCreate, **values)
    )


def upload(collection: str) -> Call[IngestJob]:
    return Call("POST", documents_path(collection), IngestJob.model_validate_json)


def list_documents(collection: str, *, after: str | None) -> Call[DocumentList]:
    params = {} if after is None else {"after": after}
    return Call("GET", documents_path(collection), DocumentList.model_validate_json, params=params)


def get_document(collection: str, document_id: str) -> Call[Document]:
    return Call("GET", f"{documents_path(collection)}/{segment(document_id)}", Document.model_validate_json)


def document_source(collection: str, document_id: str) -> Call[bytes]:
    path = f"/v1/collections/{segment(collection)}/source"
    return Call("GET", path, bytes, params={"document_id": document_id})


def document_passages(collection: str, document_id: str, *, after: int) -> Call[DocumentPassages]:
    path = f"/v1/collections/{segment(collection)}/passages"
    params: dict[str, str | int] = {"document_id": document_id, "after": after}
    return Call("GET", path, DocumentPassages.model_validate_json, params=params)


def delete_document(collection: str, document_id: str) -> Call[None]:
    return Call("DELETE", f"{documents_path(collection)}/{segment(document_id)}", _nothing)


def get_job(collection: str, job_id: str) -> Call[IngestJob]:
    return Call("GET", f"/v1/collections/{segment(collection)}/jobs/{segment(job_id)}", IngestJob.model_validate_json)


def query(collection: str, **values: Any) -> Call[QueryResponse]:
    path = f"/v1/collections/{segment(collection)}/query"
    return Call("POST", path, QueryResponse.model_validate_json, json=checked(QueryRequest, **values))


def stream_query(collection: str, **values: Any) -> StreamCall[QueryEvent]:
    path = f"/v1/collections/{segment(collection)}/query"
    return StreamCall(
        path,
        read_query_event,
        lambda event: isinstance(event, QueryResponse),
        checked(QueryRequest, stream=True, **values),
    )


def search(collection: str, **values: Any) -> Call[list[Source]]:
    path = f"/v1/collections/{segment(collection)}/search"
    return Call(
        "POST",
        path,
        lambda body: SearchResponse.model_validate_json(body).sources,
        json=checked(SearchRequest, **values),
    )


def kv_stats() -> Call[KVStats]:
    return Call("GET", "/v1/kv/stats", KVStats.model_validate_json)


def selected(collection: str, document_id: str | None, passage_ids: Sequence[str] | None) -> dict[str, Any]:
    """A selection of passage KV."""
    chosen: dict[str, Any] = {"collection": collection}
    if document_id is not None:
        chosen["document_id"] = document_id
    if passage_ids is not None:
        chosen["passage_ids"] = list(passage_ids)
    return chosen


def kv_lookup(selection: Mapping[str, Any]) -> Call[KVLookup]:
    return Call("POST", "/v1/kv/lookup", KVLookup.model_validate_json, json=checked(KVSelection, **selection))


def kv_pairs(collection: str, limit: int) -> Call[list[KVPair]]:
    body = checked(KVPairSelection, collection=collection, limit=limit)
    return Call("POST", "/v1/kv/pairs", lambda answer: KVPairs.model_validate_json(answer).pairs, json=body)


def kv_change(action: Literal["pin", "unpin", "clear"], selection: Mapping[str, Any]) -> Call[int]:
    return Call("POST", f"/v1/kv/{action}", _num_files, json=checked(KVSelection, **selection))


def kv_move(selection: Mapping[str, Any], to: str) -> Call[int]:
    return Call("POST", "/v1/kv/move", _num_files, json=checked(KVMove, to=to, **selection))


def kv_compress(selection: Mapping[str, Any], codec: str) -> Call[KVCompressed]:
    order = checked(KVCompress, codec=codec, **selection)
    return Call("POST", "/v1/kv/compress", KVCompressed.model_validate_json, json=order)


def kv_verify() -> Call[KVVerifyReport]:
    return Call("POST", "/v1/kv/verify", KVVerifyReport.model_validate_json)


def kv_sweep() -> Call[int]:
    return Call("POST", "/v1/kv/sweep", lambda body: KVSweep.model_validate_json(body).num_passages)


def _num_files(body: bytes) -> int:
    return KVCount.model_validate_json(body).num_files


def calibration() -> Call[Calibration]:
    return Call("GET", "/v1/calibration", Calibration.model_validate_json)


def readiness() -> Call[Readiness]:
    return Call("GET", "/readyz", Readiness.model_validate_json, answers=(503,))


class _Model(BaseModel, defer_build=True):
    id: str


class _ModelList(BaseModel, defer_build=True):
    data: list[_Model]


def list_models() -> Call[list[str]]:
    return Call("GET", "/v1/models", lambda body: [model.id for model in _ModelList.model_validate_json(body).data])


def _chat_body(
    messages: Sequence[Mapping[str, Any]], model: str | None, blend: BlendOptions, extra: Mapping[str, Any]
) -> dict[str, Any]:
    body = {"messages": list(messages), **extra, "kvblend": blend_field(blend)}
    return body if model is None else {"model": model, **body}


def chat(
    messages: Sequence[Mapping[str, Any]], model: str | None, blend: BlendOptions, extra: Mapping[str, Any]
) -> Call[ChatCompletion]:
    body = _chat_body(messages, model, blend, extra)
    return Call("POST", "/v1/chat/completions", ChatCompletion.model_validate_json, json=body)


def stream_chat(
    messages: Sequence[Mapping[str, Any]], model: str | None, blend: BlendOptions, extra: Mapping[str, Any]
) -> StreamCall[ChatChunk]:
    streamed = {**extra, "stream": True, "stream_options": {"include_usage": True}}
    return StreamCall(
        "/v1/chat/completions", read_chat_event, lambda _: False, _chat_body(messages, model, blend, streamed)
    )


def read_query_event(event: ServerSentEvent) -> QueryEvent:
    """Read one event of a streamed query; an `error` event is raised."""
    match event.event:
        case "sources":
            return SearchResponse.model_validate_json(event.data)
        case "delta":
            return QueryDelta.model_validate_json(event.data)
        case "done":
            return QueryResponse.model_validate_json(event.data)
        case "error":
            raise error_of(ErrorResponse.model_validate_json(event.data).error)
        case name:
            raise KVBlendError(f"the service sent an event that this SDK does not know: {name[:64]}")


def read_chat_event(event: ServerSentEvent) -> ChatChunk | None:
    """Read one chunk of a streamed chat completion; None at its end. A chunk that holds an error is raised."""
    if event.data == "[DONE]":
        return None
    try:
        return ChatChunk.model_validate_json(event.data)
    except ValidationError:
        raise error_of(ErrorResponse.model_validate_json(event.data).error) from None
