"""Collections, their documents and the jobs that ingest these."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response, status

from kvblend.api.access.caller import caller_of
from kvblend.api.http.guarded_route import GuardedRoute, needs
from kvblend.api.http.sse import Events, event, stream_events
from kvblend.api.ingest.jobs import Job
from kvblend.api.ingest.uploads import UPLOAD_BODY, read_uploads
from kvblend.api.service import service_of
from kvblend.core.collection_name import name_in_tenant
from kvblend.core.errors import NotFoundError
from kvblend.core.rest import (
    Collection,
    CollectionCreate,
    CollectionList,
    CollectionRebuild,
    CollectionUpdate,
    Document,
    DocumentList,
    DocumentPassage,
    DocumentPassages,
    IngestJob,
)
from kvblend.retriever import DocumentRecord

__all__ = ["router"]

router = APIRouter(prefix="/v1/collections", tags=["collections"], route_class=GuardedRoute)

PageLimit = Annotated[int, Query(ge=1, le=1000)]


@router.post("", status_code=status.HTTP_201_CREATED)
@needs("ingest")
async def create_collection(request: Request, body: CollectionCreate) -> Collection:
    """Create a collection."""
    service = service_of(request)
    max_model_len = await service.max_model_len()
    return await asyncio.to_thread(
        service.collections.create, body, max_model_len=max_model_len, tenant=caller_of(request).tenant
    )


@router.get("")
@needs("query")
async def list_collections(request: Request) -> CollectionList:
    """All collections, by name."""
    views = service_of(request).collections.views
    return CollectionList(collections=await asyncio.to_thread(views, caller_of(request).tenant))


@router.get("/{collection}")
@needs("query")
async def get_collection(request: Request, collection: str) -> Collection:
    """One collection."""
    return await asyncio.to_thread(service_of(request).collections.view, collection)


@router.patch("/{collection}")
@needs("ingest")
async def update_collection(request: Request, collection: str, body: CollectionUpdate) -> Collection:
    """Change the limits of a collection's KV that the body names; null takes one away."""
    return await asyncio.to_thread(service_of(request).collections.update, collection, body)


@router.post("/{collection}/rebuild", status_code=status.HTTP_202_ACCEPTED)
@needs("ingest")
async def rebuild_collection(request: Request, collection: str, body: CollectionRebuild) -> IngestJob:
    """Begin to split and embed the documents of a collection anew, from what is kept of them."""
    service = service_of(request)
    max_model_len = await service.max_model_len()
    job = await service.ingest.rebuild(collection, body.passage_tokens, max_model_len=max_model_len)
    return _shown(job.state)


@router.delete("/{collection}", status_code=status.HTTP_204_NO_CONTENT)
@needs("ingest")
async def delete_collection(request: Request, collection: str) -> None:
    """Delete a collection with its documents, vectors and KV."""
    await service_of(request).ingest.delete_collection(collection)


@router.post(
    "/{collection}/documents", status_code=status.HTTP_202_ACCEPTED, openapi_extra={"requestBody": UPLOAD_BODY}
)
@needs("ingest", work="upload")
async def add_documents(request: Request, collection: str) -> IngestJob:
    """Begin to ingest one document as JSON (`DocumentCreate`), or files as multipart, each in a field `files`."""
    service = service_of(request)
    service.ingest.require_room(collection)
    await asyncio.to_thread(service.collections.open, collection)
    room, max_document_bytes = service.ingest.room, service.settings.max_document_bytes
    uploads = await read_uploads(request, max_document_bytes=max_document_bytes, room=room)
    return _shown((await service.ingest.begin(collection, uploads)).state)


@router.get("/{collection}/documents")
@needs("query")
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


@router.get("/{collection}/passages")
@needs("query")
async def document_passages(
    request: Request,
    collection: str,
    document_id: Annotated[str, Query(max_length=512)],
    after: Annotated[int, Query(ge=0, le=1 << 40)] = 0,
    limit: PageLimit = 100,
) -> DocumentPassages:
    """A page of a document's passages in order, those behind the first `after`."""
    catalog = service_of(request).retriever.catalog
    records = await asyncio.to_thread(catalog.document_passages, collection, document_id)
    end = after + limit
    return DocumentPassages(
        passages=[
            DocumentPassage(passage_id=each.passage_id, text=each.text, num_tokens=len(each.token_ids))
            for each in records[after:end]
        ],
        next_after=end if len(records) > end else None,
    )


@router.get("/{collection}/source", response_class=Response)
@needs("query")
async def document_source(
    request: Request, collection: str, document_id: Annotated[str, Query(max_length=512)]
) -> Response:
    """A document as it was uploaded; 404, too, where an earlier version took it, which kept no sources."""
    catalog = service_of(request).retriever.catalog
    document = await asyncio.to_thread(catalog.get_document, collection, document_id)
    source = await asyncio.to_thread(catalog.document_source, collection, document_id)
    if source is None:
        raise NotFoundError(f"the source of document {document_id!r} was not kept: upload it once more")
    headers = {"Content-Disposition": "attachment", "X-Content-Type-Options": "nosniff"}
    return Response(source, media_type=document.media_type, headers=headers)


@router.get("/{collection}/documents/{document_id:path}")
@needs("query")
async def get_document(request: Request, collection: str, document_id: str) -> Document:
    """One document."""
    catalog = service_of(request).retriever.catalog
    return _document(await asyncio.to_thread(catalog.get_document, collection, document_id))


@router.delete("/{collection}/documents/{document_id:path}", status_code=status.HTTP_204_NO_CONTENT)
@needs("ingest")
async def delete_document(request: Request, collection: str, document_id: str) -> None:
    """Delete a document's text, vectors and KV, where nothing else uses them."""
    await service_of(request).ingest.delete_document(collection, document_id)


@router.get("/{collection}/jobs/{job_id}")
@needs("query")
async def get_job(request: Request, collection: str, job_id: str) -> IngestJob:
    """An ingest job as it stands."""
    return _shown(service_of(request).ingest.jobs.get(collection, job_id).state)


@router.get("/{collection}/jobs/{job_id}/events")
@needs("query")
async def job_events(request: Request, collection: str, job_id: str) -> Response:
    """An ingest job's progress: events `progress`..., `done`, each with the job as it stands."""
    job = service_of(request).ingest.jobs.get(collection, job_id)
    return await stream_events(request, _job_events(job), error_event="error")


async def _job_events(job: Job) -> Events:
    async for state in job.states():
        ended = state.status in ("succeeded", "failed")
        yield event(_shown(state).model_dump(mode="json"), name="done" if ended else "progress")


def _shown(job: IngestJob) -> IngestJob:
    """A job with its tenant's own name of the collection."""
    return job.model_copy(update={"collection": name_in_tenant(job.collection)})


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
