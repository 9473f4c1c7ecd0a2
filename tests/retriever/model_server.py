"""A server of `/v1/embeddings` and `/rerank`, by rule: what remote models are tested against."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from tests.retriever.ingest_until_killed import HashEmbedder

__all__ = ["ModelServer", "model_server"]


@dataclass
class ModelServer:
    """Where it answers, what it was asked, and what it answers instead."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    refusals: list[int] = field(default_factory=list)
    """Statuses of the next answers; then it answers."""
    answer: Any = None
    dim: int = 32

    def embeddings(self, body: dict[str, Any]) -> Any:
        vectors = HashEmbedder().encode(body["input"])[:, : self.dim] * 3.0  # not of unit length
        data = [{"index": index, "embedding": vector.tolist()} for index, vector in enumerate(vectors)]
        return {"data": data[::-1], "model": body["model"]}

    def rerank(self, body: dict[str, Any]) -> Any:
        """The share of a document's words that are the query's."""
        query = set(body["query"].lower().split())
        scores = [
            sum(word in query for word in document.lower().split()) / len(document.split())
            for document in body["documents"]
        ]
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        return {"results": [{"index": index, "relevance_score": scores[index]} for index in order]}


@contextmanager
def model_server() -> Iterator[ModelServer]:
    """Run one in a thread."""
    state = ModelServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.bodies.append(body)
            state.headers.append(dict(self.headers))
            status = state.refusals.pop(0) if state.refusals else 200
            if status != 200:
                answer: Any = {"error": {"message": "not that"}}
            elif state.answer is not None:
                answer = state.answer
            else:
                answer = state.rerank(body) if self.path == "/rerank" else state.embeddings(body)
            sent = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="model server")
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
