"""LangChain's documents, and the passages that they are for the service."""

from langchain_core.documents import Document

from kvblend.core.rest import Source, SuppliedDocument

__all__ = ["to_document", "to_supplied"]


def to_document(source: Source) -> Document:
    """Turn a retrieved passage into a document whose id is the passage's. Its metadata is the ingested document's own;
    under `kvblend`, unless that has such a key, stand `document_id`, `document_name` and `score`."""
    found = {"document_id": source.document_id, "document_name": source.document_name, "score": source.score}
    return Document(id=source.passage_id, page_content=source.text, metadata={"kvblend": found, **source.metadata})


def to_supplied(document: Document) -> SuppliedDocument:
    """Turn a document into a passage to blend."""
    return SuppliedDocument(text=document.page_content, id=document.id, metadata=document.metadata)
