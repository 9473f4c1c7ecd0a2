"""LangChain's documents, and the passages that they are for the service."""

from langchain_core.documents import Document

from kvblend.core.rest import Source, SuppliedDocument
from kvblend.sdk.frameworks.collection_search import metadata_of

__all__ = ["to_document", "to_supplied"]


def to_document(source: Source) -> Document:
    """Turn a retrieved passage into a document whose id is the passage's, with the metadata of `metadata_of`."""
    return Document(id=source.passage_id, page_content=source.text, metadata=metadata_of(source))


def to_supplied(document: Document) -> SuppliedDocument:
    """Turn a document into a passage to blend."""
    return SuppliedDocument(text=document.page_content, id=document.id, metadata=document.metadata)
