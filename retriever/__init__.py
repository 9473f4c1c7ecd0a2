"""Documents in, passages out: parsing, splitting, embedding, FAISS index and SQLite catalog; knows nothing of KV."""

from kvblend.retriever.catalog import Catalog
from kvblend.retriever.database import Database
from kvblend.retriever.document import Block, ParsedDocument
from kvblend.retriever.embedder import Embedder, EmbeddingModel
from kvblend.retriever.ingest import Hit, IngestPlan, IngestResult
from kvblend.retriever.matching import PassageMatcher, TokenMatch
from kvblend.retriever.packing import PassageText
from kvblend.retriever.parsers import guess_media_type, parse_document, require_media_type
from kvblend.retriever.records import CollectionRecord, CollectionSettings, DocumentRecord, NewDocument, PassageRecord
from kvblend.retriever.remote_embedder import RemoteEmbedder
from kvblend.retriever.reranker import CrossEncoderReranker, RemoteReranker, Reranker
from kvblend.retriever.retriever import Retriever
from kvblend.retriever.split_pool import SplitLimits, SplitPool
from kvblend.retriever.splitter import Splitter, split_document
from kvblend.retriever.tokenizer import SEPARATOR, PassageTokenizer

__all__ = [
    "SEPARATOR",
    "Block",
    "Catalog",
    "CollectionRecord",
    "CollectionSettings",
    "CrossEncoderReranker",
    "Database",
    "DocumentRecord",
    "Embedder",
    "EmbeddingModel",
    "Hit",
    "IngestPlan",
    "IngestResult",
    "NewDocument",
    "ParsedDocument",
    "PassageMatcher",
    "PassageRecord",
    "PassageText",
    "PassageTokenizer",
    "RemoteEmbedder",
    "RemoteReranker",
    "Reranker",
    "Retriever",
    "SplitLimits",
    "SplitPool",
    "Splitter",
    "TokenMatch",
    "guess_media_type",
    "parse_document",
    "require_media_type",
    "split_document",
]
