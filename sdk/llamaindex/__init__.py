"""LlamaIndex: an LLM that blends the nodes that any retriever returned, a retriever and a query engine.

engine = KVBlendQueryEngine(KVBlendRetriever("handbook"), KVBlendLLM())
engine.query("When was the bridge opened?").metadata["kvblend"]
"""

from kvblend.sdk.llamaindex.llm import KVBlendLLM
from kvblend.sdk.llamaindex.query_engine import BlendSynthesizer, KVBlendQueryEngine
from kvblend.sdk.llamaindex.retriever import KVBlendRetriever

__all__ = ["BlendSynthesizer", "KVBlendLLM", "KVBlendQueryEngine", "KVBlendRetriever"]
