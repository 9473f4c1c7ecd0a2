"""LangChain: a chat model that blends the documents that any retriever returned, a retriever and a vector store.

chat = ChatKVBlend()
chain = {"documents": retriever, "question": RunnablePassthrough()} | blend_documents(chat)
chain.invoke("When was the bridge opened?").response_metadata["kvblend"]
"""

from kvblend.sdk.langchain.chat import ChatKVBlend, blend_documents
from kvblend.sdk.langchain.retriever import KVBlendRetriever
from kvblend.sdk.langchain.vector_store import KVBlendVectorStore

__all__ = ["ChatKVBlend", "KVBlendRetriever", "KVBlendVectorStore", "blend_documents"]
