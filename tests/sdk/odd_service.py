"""A small service that answers as the real one cannot be made to: streams that break, jobs that fail, a proxy's words.

The collection's name or the question says what it does; the routes are those of the SDK.
"""

import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from kvblend.core.rest import Document, DocumentList, ErrorBody, ErrorResponse, IngestJob, QueryDelta, SearchResponse

__all__ = ["DOCUMENT_IDS", "running"]

DOCUMENT_IDS = ["a", "b", "c/d", "e", "f"]
PAGE = 2
DIED = ErrorResponse(error=ErrorBody(message="vLLM died", type="server_error", code="engine_unavailable"))
app = FastAPI()


@app.get("/v1/collections/{c}/documents")
def documents(c: str, after: str | None = None) -> DocumentList:
    """Pages of two."""
    ids = [id for id in DOCUMENT_IDS if after is None or id > after]
    page = [
        Document(id=id, name=id, media_type="text/plain", num_passages=1, num_tokens=1, created_at=0.0)
        for id in ids[:PAGE]
    ]
    return DocumentList(documents=page, next_after=page[-1].id if len(ids) > PAGE else None)


@app.get("/v1/collections/{c}/jobs/{j}")
def job(c: str, j: str) -> IngestJob:
    """The job `poison` fails; every other one runs for ever."""
    if j == "poison":
        return IngestJob(id=j, collection=c, status="failed", error="the document is poison")
    return IngestJob(id=j, collection=c, status="running")


@app.get("/v1/collections/{status}")
def proxy(status: int) -> Response:
    """What a proxy in front of the service says."""
    return PlainTextResponse("the proxy's own words", status)


@app.get("/readyz")
def readyz() -> Response:
    """A proxy's, which knows nothing of the service behind it."""
    return proxy(503)


@app.post("/v1/collections/{c}/query")
def query(c: str, body: dict[str, Any]) -> Response:
    async def events() -> AsyncIterator[str]:
        yield f"event: sources\r\ndata: {SearchResponse(sources=[]).model_dump_json()}\r\n\r\n: a comment\r\n\r\n"
        for word in ("line\u2028ends ", "of\u0085str ", "are not SSE's"):
            yield f"event: delta\r\ndata: {QueryDelta(text=word).model_dump_json()}\r\n\r\n"
        match body["question"]:
            case "hang up":
                raise ConnectionResetError("hung up")
            case "fail":
                yield f"event: error\r\ndata: {DIED.model_dump_json()}\r\n\r\n"
            case "novelty":
                yield "event: novelty\r\ndata: {}\r\n\r\n"

    return StreamingResponse(events(), media_type="text/event-stream")


@app.post("/v1/chat/completions")
def chat(body: dict[str, Any]) -> Response:
    """A stream that an error ends, or where the message is `break` nothing at all."""

    async def events() -> AsyncIterator[bytes]:
        chunk = {"id": "chat1", "model": "odd", "choices": [{"index": 0, "delta": {"content": "You"}}]}
        yield b"data: " + JSONResponse(chunk).body + b"\n\n"
        if body["messages"][-1]["content"] != "break":
            yield f"data: {DIED.model_dump_json()}\n\n".encode()
            yield b"data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


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
