"""Retrieve from a collection, and answer from what was retrieved."""

import time
import uuid
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from kvblend.api.engine.blend_order import BlendOrder
from kvblend.api.http.disconnect import unless_disconnected
from kvblend.api.http.guarded_route import GuardedRoute, needs
from kvblend.api.http.sse import Events, event, stream_events
from kvblend.api.prompt.retrieval import Retrieved
from kvblend.api.prompt.rewriting import rewrite_question
from kvblend.api.service import Service, service_of
from kvblend.core.collection_name import tenant_of
from kvblend.core.report import BlendReport
from kvblend.core.rest import QueryDelta, QueryRequest, QueryResponse, SearchRequest, SearchResponse, Usage

__all__ = ["router"]

router = APIRouter(prefix="/v1/collections/{collection}", tags=["query"], route_class=GuardedRoute)


@router.post("/search")
@needs("query", work="lookup")
async def search(request: Request, collection: str, body: SearchRequest) -> SearchResponse:
    """Retrieval alone."""
    retrieved = await service_of(request).retrieval.search(collection, body.query, body)
    return SearchResponse(sources=retrieved.sources)


@router.post("/query", response_model=QueryResponse)
@needs("query", work="answer")
async def query(request: Request, collection: str, body: QueryRequest) -> Response | QueryResponse:
    """Retrieve, blend, answer. Streamed: events `sources`, `delta`..., `done`, or `error`."""
    service = service_of(request)
    if body.stream:
        return await stream_events(request, _events(service, collection, body), error_event="error")
    return await unless_disconnected(request, _whole(service, collection, body))


async def _whole(service: Service, collection: str, body: QueryRequest) -> QueryResponse:
    asked = await _asked(service, collection, body)
    answer = _Answer(asked)
    async for item in service.blender.stream(asked.order):
        answer.add(item)
    return answer.response()


async def _events(service: Service, collection: str, body: QueryRequest) -> Events:
    asked = await _asked(service, collection, body)
    answer = _Answer(asked)
    async with aclosing(service.blender.stream(asked.order)) as items:
        begun = False
        async for item in items:
            text = answer.add(item)
            if not begun:  # not before vLLM answers: until then an error is an HTTP status
                begun = True
                yield event(SearchResponse(sources=asked.retrieved.sources).model_dump(mode="json"), name="sources")
            if text:
                yield event(QueryDelta(text=text).model_dump(), name="delta")
    yield event(answer.response().model_dump(mode="json"), name="done")


async def _asked(service: Service, collection: str, body: QueryRequest) -> "_Asked":
    rewritten = None
    if body.rewrite:
        salt = service.collections.salts.of(tenant_of(collection))
        rewritten = await rewrite_question(service.replicas, body.history, body.question, salt=salt)
    began = time.perf_counter()
    retrieved = await service.retrieval.search(collection, rewritten or body.question, body)
    retrieved = await service.order.arrange(retrieved, body.order, reuse=body.reuse)
    retrieve_ms = (time.perf_counter() - began) * 1000
    if body.reuse == "blend":
        await service.blender.prepare(retrieved.passages)
    preamble = retrieved.collection.preamble
    earlier = [message.model_dump() for message in body.history]
    frame = await service.query_threads.run(
        service.prompts.frame, [], body.question, preamble=preamble, earlier=earlier
    )
    order = BlendOrder(
        prompt=retrieved.prompt(frame if earlier else retrieved.frame(frame)),
        choices=body,
        sampling={"max_tokens": body.max_tokens, "temperature": body.temperature},
    )
    return _Asked(retrieved, order, rewritten, retrieve_ms)


@dataclass(frozen=True)
class _Asked:
    """What was found, what is to be made of it, the question that it was found for where that was rewritten, and the
    milliseconds that finding it took."""

    retrieved: Retrieved
    order: BlendOrder
    rewritten: str | None
    retrieve_ms: float


class _Answer:
    """One answer as it grows."""

    def __init__(self, asked: _Asked) -> None:
        self._asked = asked
        self._text: list[str] = []
        self._usage = Usage(prompt_tokens=0, completion_tokens=0)
        self._finish_reason: str | None = None
        self._report: BlendReport | None = None

    def add(self, item: dict[str, Any] | BlendReport) -> str:
        """Take a chunk or the report; returns the text that it adds."""
        if isinstance(item, BlendReport):
            self._report = item
            return ""
        if item.get("usage"):
            counts = item["usage"]
            self._usage = Usage(prompt_tokens=counts["prompt_tokens"], completion_tokens=counts["completion_tokens"])
        text = "".join(choice["text"] for choice in item["choices"])
        for choice in item["choices"]:
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
        self._text.append(text)
        return text

    def response(self) -> QueryResponse:
        """The whole answer, once the report is in."""
        assert self._report is not None
        return QueryResponse(
            id=f"query-{uuid.uuid4().hex}",
            answer="".join(self._text).strip(),
            sources=self._asked.retrieved.sources,
            report=self._report,
            usage=self._usage,
            finish_reason=self._finish_reason,
            rewritten=self._asked.rewritten,
            retrieve_ms=self._asked.retrieve_ms,
        )
