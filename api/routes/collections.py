"""Collections, their documents and the jobs that ingest these."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response, status

from kvblend.api.jobs import Job
from kvblend.api.json_body import StrictRoute
from kvblend.api.service import service_of
from kvblend.api.sse import Events, event, stream_events
from kvblend.api.uploads import read_uploads
from kvblend.core.rest import (
    Collection,
    CollectionCreate,
    CollectionList,
    CollectionUpdate,
    Document,
    DocumentList,
    IngestJob,
)
from kvblend.retriever import DocumentRecord

__all__ = ["router"]

router = APIRouter(prefix="/v1/collections", tags=["collections"], route_class=StrictRoute)

PageLimit = Annotated[int, Query(ge=1, le=1000)]


@router.post("", status_code=status.HTTP_201_CREATED)
async def create_collection(request: Request, body: CollectionCreate) -> Collection:
    """Create a collection."""
    service = service_of(request)
    max_model_len = await service.max_model_len()
    return await asyncio.to_thread(service.collections.create, body, max_model_len=max_model_len)


@router.get("")
async def list_collections(request: Request) -> CollectionList:
    """All collections, by name."""
    return CollectionList(collections=await asyncio.to_thread(service_of(request).collections.views))


@router.get("/{collection}")
async def get_collection(request: Request, collection: str) -> Collection:
    """One collection."""
    return await asyncio.to_thread(service_of(request).collections.view, collection)


@router.patch("/{collection}")
async def update_collection(request: Request, collection: str, body: CollectionUpdate) -> Collection:
    """Change the limits of a collection's KV that the body names; null takes one away."""
    return await asyncio.to_thread(service_of(request).collections.update, collection, body)


@router.delete("/{collection}", status_code=status.HTTP_204_NO_CONTENT)
async def delete_collection(request: Request, collection: str) -> None:
    """Delete a collection with its documents, vectors and KV."""
    await service_of(request).ingest.delete_collection(collection)


@router.post("/{collection}/documents", status_code=status.HTTP_202_ACCEPTED)
async def add_documents(request: Request, collection: str) -> IngestJob:
    """Begin to ingest one document as JSON (`DocumentCreate`), or files as multipart, each in a field `files`."""
    service = service_of(request)
    await asyncio.to_thread(service.collections.open, collection)
    uploads = await read_uploads(request, max_document_bytes=service.settings.max_document_bytes)
    return (await service.ingest.begin(collection, uploads)).state


@router.get("/{collection}/documents")
async def list_documents(
    request: Request, collection: str, after: str | None = None, limit: PageLimit = 100
) -> DocumentList:
    """A page of documents by id, those behind the id `after`."""
    catalog = service_of(request).retriever.catalog
    records = await asyncio.to_thread(catalog.list_documents, collection, limit=limit + 1, after=after)
    page = records[:limit]
    return DocumentList(
        documents=[_document(record) for record in page], next_after=page[-1].id if len(records) > limit else None
    )


@router.get("/{collection}/documents/{document_id:path}")
async def get_document(request: Request, collection: str, document_id: str) -> Document:
    """One document."""
    catalog = service_of(request).retriever.catalog
    return _document(await asyncio.to_thread(catalog.get_document, collection, document_id))


@router.delete("/{collection}/documents/{document_id:path}", status_code=status.HTTP_204_NO_CONTENT)
async def delete_document(request: Request, collection: str, document_id: str) -> None:
    """Delete a document's text, vectors and KV, where nothing else uses them."""
    await service_of(request).ingest.delete_document(collection, document_id)


@router.get("/{collection}/jobs/{job_id}")
async def get_job(request: Request, collection: str, job_id: str) -> IngestJob:
    """An ingest job as it stands."""
    return service_of(request).ingest.jobs.get(collection, job_id).state


@router.get("/{collection}/jobs/{job_id}/events")
async def job_events(request: Request, collection: str, job_id: str) -> Response:
    """An ingest job's progress: events `progress`..., `done`, each with the job as it stands."""
    job = service_of(request).ingest.jobs.get(collection, job_id)
    return await stream_events(request, _job_events(job), error_event="error")


async def _job_events(job: Job) -> Events:
    async for state in job.states():
        ended = state.status in ("succeeded", "failed")
        yield event(state.model_dump(mode="json"), name="done" if ended else "progress")


def _document(record: DocumentRecord) -> Document:
    return Document(
        id=record.id,
        name=record.name,
        media_type=record.media_type,
        num_passages=record.num_passages,
        num_tokens=record.num_tokens,
        metadata=record.metadata,
        created_at=record.created_at,
    )
