"""Haystack: a chat generator that blends the documents that any retriever returned, and a retriever.

pipeline.add_component("retriever", KVBlendRetriever("handbook"))
pipeline.add_component("generator", KVBlendChatGenerator())
pipeline.connect("retriever.documents", "generator.documents")
"""

from kvblend.sdk.haystack.generator import KVBlendChatGenerator
from kvblend.sdk.haystack.retriever import KVBlendRetriever

__all__ = ["KVBlendChatGenerator", "KVBlendRetriever"]
