"""A small service that speaks the routes of the SDK over HTTP: it keeps texts in memory and answers by rule.

The answer to a question is `You asked: <question>`, word by word when streamed. A question `break` breaks the
stream off, `hang up` cuts the connection, `fail` sends an `error` event.
"""

import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from kvblend.core.report import BlendReport
from kvblend.core.rest import (
    BlendOptions,
    Collection,
    CollectionCreate,
    CollectionList,
    Document,
    DocumentCreate,
    DocumentList,
    ErrorBody,
    ErrorResponse,
    IngestJob,
    KVStats,
    QueryDelta,
    QueryRequest,
    QueryResponse,
    SearchRequest,
    SearchResponse,
    Source,
    SuppliedDocument,
    TierStats,
    Usage,
)
from kvblend.sdk import BlendResult

app = FastAPI()
collections: dict[str, dict[str, DocumentCreate]] = {}
jobs: dict[str, IngestJob] = {}
PAGE = 2


def problem(status: int, code: str, message: str, param: str | None = None) -> JSONResponse:
    error = ErrorBody(message=message, type="invalid_request_error", param=param, code=code)
    return JSONResponse(ErrorResponse(error=error).model_dump(), status)


@app.exception_handler(KeyError)
def not_found(_: Request, error: Exception) -> JSONResponse:
    return problem(404, "not_found", f"there is no {error}")


def describe(name: str) -> Collection:
    num = len(collections[name])
    return Collection(
        name=name, model="small", embedding_model="none", preamble="Answer.", warm_context="", passage_tokens=256,
        num_documents=num, num_passages=num, created_at=0.0,
    )  # fmt: skip


def as_document(document: DocumentCreate) -> Document:
    return Document(
        id=document.id or "", name=document.name or "", media_type=document.media_type, num_passages=1,
        num_tokens=len(document.text.split()), metadata=document.metadata, created_at=0.0,
    )  # fmt: skip


def find(collection: str, text: str, top_k: int) -> list[Source]:
    """Rank documents by the words they share with the text."""
    words = set(text.lower().split())
    sources = [
        Source(
            document_id=document.id, document_name=document.name, passage_id=f"p-{document.id}", text=document.text,
            score=len(words & set(document.text.lower().split())) / len(words), metadata=document.metadata,
        )
        for document in collections[collection].values()
    ]  # fmt: skip
    return sorted(sources, key=lambda source: -(source.score or 0))[:top_k]


def start_job(collection: str, documents: list[DocumentCreate]) -> JSONResponse:
    job = IngestJob(id=f"job{len(jobs)}", collection=collection, status="queued", passages_total=len(documents))
    for document in documents:
        document.id = document.id or document.name or f"text{len(collections[collection])}"
        document.name = document.name or document.id
        collections[collection][document.id] = document
        job.document_ids.append(document.id)
    jobs[job.id] = job
    return JSONResponse(job.model_dump(), 202)


@app.post("/v1/collections", response_model=None)
def create(body: CollectionCreate) -> Collection | JSONResponse:
    if body.name in collections:
        return problem(409, "conflict", f"the name {body.name} is taken", "name")
    collections[body.name] = {}
    return describe(body.name)


@app.get("/v1/collections")
def list_all() -> CollectionList:
    return CollectionList(collections=[describe(name) for name in collections])


@app.get("/v1/collections/{c}")
def get(c: str) -> Collection:
    return describe(c)


@app.delete("/v1/collections/{c}", status_code=204)
def delete(c: str) -> None:
    del collections[c]


@app.post("/v1/collections/{c}/documents")
async def ingest(c: str, request: Request) -> JSONResponse:
    if request.headers["content-type"] == "application/json":
        document = DocumentCreate.model_validate_json(await request.body())
        return start_job(c, [document])
    async with request.form() as form:
        files = [file for file in form.getlist("files") if not isinstance(file, str)]
        texts = [(file.filename, (await file.read()).decode()) for file in files]
    if any(not text for _, text in texts):
        return problem(400, "invalid_request", "a document is empty", "files")
    return start_job(c, [DocumentCreate(name=name, text=text) for name, text in texts])


@app.get("/v1/collections/{c}/documents")
def documents(c: str, after: str | None = None) -> DocumentList:
    ids = sorted(id for id in collections[c] if after is None or id > after)
    page = ids[:PAGE]
    following = page[-1] if len(ids) > PAGE else None
    return DocumentList(documents=[as_document(collections[c][id]) for id in page], next_after=following)


@app.get("/v1/collections/{c}/documents/{d:path}")
def document(c: str, d: str) -> Document:
    return as_document(collections[c][d])


@app.delete("/v1/collections/{c}/documents/{d:path}", status_code=204)
def delete_document(c: str, d: str) -> None:
    del collections[c][d]


@app.get("/v1/collections/{c}/jobs/{j}")
def job(c: str, j: str) -> IngestJob:
    """Every look at a job moves it on."""
    job = jobs[j]
    if any(document.text == "poison" for document in collections[c].values()):
        job.status, job.error = "failed", "the document is poison"
    elif job.status == "queued":
        job.status = "running"
    else:
        job.status, job.passages_encoded = "succeeded", job.passages_total
    return job


@app.post("/v1/collections/{c}/search")
def search(c: str, body: SearchRequest) -> SearchResponse:
    return SearchResponse(sources=find(c, body.query, body.top_k))


def report(num_passages: int, ratio: float | None) -> BlendReport:
    return BlendReport(outcome="blended", reused_tokens=num_passages, recompute_ratio=ratio)


@app.post("/v1/collections/{c}/query", response_model=None)
def query(c: str, body: QueryRequest) -> QueryResponse | Response:
    if body.question == "engine down":
        return problem(503, "engine_unavailable", "vLLM does not answer")
    sources = find(c, body.question, body.top_k)
    whole = QueryResponse(
        id="q1", answer=f"You asked: {body.question}", sources=sources,
        report=report(len(sources), body.recompute_ratio), usage=Usage(prompt_tokens=1, completion_tokens=1),
        finish_reason="stop",
    )  # fmt: skip
    if not body.stream:
        return whole

    async def events() -> AsyncIterator[str]:
        yield f"event: sources\r\ndata: {SearchResponse(sources=sources).model_dump_json()}\r\n\r\n"
        yield ": a comment\r\n\r\n"
        for word in whole.answer.split(" "):
            yield f"event: delta\r\ndata: {QueryDelta(text=word + ' ').model_dump_json()}\r\n\r\n"
        if body.question == "break":
            return
        if body.question == "hang up":
            raise ConnectionResetError("hung up")
        if body.question == "fail":
            error = ErrorBody(message="vLLM died", type="server_error", code="engine_unavailable")
            yield f"event: error\r\ndata: {ErrorResponse(error=error).model_dump_json()}\r\n\r\n"
            return
        yield f"event: done\r\ndata: {whole.model_dump_json()}\r\n\r\n"

    return StreamingResponse(events(), media_type="text/event-stream")


@app.post("/v1/chat/completions", response_model=None)
def chat(body: dict[str, Any]) -> dict[str, Any] | Response:
    options = BlendOptions.model_validate(body.pop("kvblend"))
    if len(options.documents) > 3:
        return problem(400, "context_length_exceeded", "the prompt is 7 tokens too long", "kvblend.documents")
    supplied = [SuppliedDocument(text=d) if isinstance(d, str) else d for d in options.documents]
    sources = [Source(passage_id=f"p{i}", text=d.text, metadata=d.metadata) for i, d in enumerate(supplied)]
    blended = BlendResult(report=report(len(sources), options.recompute_ratio), sources=sources).model_dump()
    question = body["messages"][-1]["content"]
    words = f"You asked: {question}".split(" ")[: body.get("max_tokens")]
    usage = {"prompt_tokens": 5, "completion_tokens": len(words), "total_tokens": 5 + len(words)}
    head = {"id": "chat1", "model": body.get("model", "small"), "created": 0}
    if not body.get("stream"):
        message = {"role": "assistant", "content": " ".join(words)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {**head, "object": "chat.completion", "choices": [choice], "usage": usage, "kvblend": blended}

    def chunks() -> Iterator[dict[str, Any]]:
        yield {**head, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
        for i, word in enumerate(words):
            yield {**head, "choices": [{"index": 0, "delta": {"content": word if i == 0 else f" {word}"}}]}
        if question == "fail":
            yield {"error": {"message": "vLLM died", "type": "server_error", "code": "engine_unavailable"}}
            return
        yield {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        yield {**head, "choices": [], "usage": usage, "kvblend": blended}

    async def events() -> AsyncIterator[bytes]:
        for chunk in chunks():
            yield b"data: " + JSONResponse(chunk).body + b"\n\n"
        yield b"data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


@app.get("/v1/models")
def models() -> dict[str, Any]:
    return {"object": "list", "data": [{"id": "small", "object": "model"}]}


@app.get("/v1/kv/stats")
def stats() -> KVStats:
    tier = TierStats(name="cpu", path="/dev/shm/kv", budget_bytes=1, used_bytes=0, num_files=0, num_pinned=0)
    return KVStats(tiers=[tier])


@contextmanager
def running() -> Iterator[str]:
    """Run the service on a free port and yield its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
