"""REST schemas, shared by the service and the SDK. Routes: docs/api.md."""

from kvblend.core.rest.blending import BlendChoices, BlendOptions, OrderName, Reuse, SuppliedDocument
from kvblend.core.rest.collections import (
    Collection,
    CollectionCreate,
    CollectionList,
    CollectionRebuild,
    CollectionUpdate,
)
from kvblend.core.rest.documents import (
    Document,
    DocumentCreate,
    DocumentList,
    DocumentPassage,
    DocumentPassages,
    IngestJob,
)
from kvblend.core.rest.errors import ErrorBody, ErrorResponse
from kvblend.core.rest.filters import MetadataCondition, MetadataFilter
from kvblend.core.rest.kv import (
    KVCompress,
    KVCompressed,
    KVCount,
    KVFile,
    KVLookup,
    KVMove,
    KVSelection,
    KVStats,
    KVSweep,
    KVVerifyReport,
    TierStats,
)
from kvblend.core.rest.quality import CalibrationState, GuardState
from kvblend.core.rest.queries import (
    HistoryMessage,
    QueryDelta,
    QueryRequest,
    QueryResponse,
    SearchRequest,
    SearchResponse,
    Source,
    Usage,
)
from kvblend.core.rest.retrieval import RetrievalChoices, SearchMode

__all__ = [
    "BlendChoices",
    "BlendOptions",
    "CalibrationState",
    "Collection",
    "CollectionCreate",
    "CollectionList",
    "CollectionRebuild",
    "CollectionUpdate",
    "Document",
    "DocumentCreate",
    "DocumentList",
    "DocumentPassage",
    "DocumentPassages",
    "ErrorBody",
    "ErrorResponse",
    "GuardState",
    "HistoryMessage",
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
    "MetadataCondition",
    "MetadataFilter",
    "OrderName",
    "QueryDelta",
    "QueryRequest",
    "QueryResponse",
    "RetrievalChoices",
    "Reuse",
    "SearchMode",
    "SearchRequest",
    "SearchResponse",
    "Source",
    "SuppliedDocument",
    "TierStats",
    "Usage",
]
