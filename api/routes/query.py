"""Retrieve from a collection, and answer from what was retrieved."""

import asyncio
import uuid
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from kvblend.api.blend_prompt import BlendPrompt
from kvblend.api.blender import BlendOrder
from kvblend.api.disconnect import unless_disconnected
from kvblend.api.gate import Wishes
from kvblend.api.json_body import StrictRoute
from kvblend.api.retrieval import Retrieved
from kvblend.api.service import Service, service_of
from kvblend.api.sse import Events, event, stream_events
from kvblend.core.report import BlendReport
from kvblend.core.rest import QueryDelta, QueryRequest, QueryResponse, SearchRequest, SearchResponse, Usage

__all__ = ["router"]

router = APIRouter(prefix="/v1/collections/{collection}", tags=["query"], route_class=StrictRoute)


@router.post("/search")
async def search(request: Request, collection: str, body: SearchRequest) -> SearchResponse:
    """Retrieval alone."""
    retrieved = await service_of(request).retrieval.search(collection, body.query, top_k=body.top_k)
    return SearchResponse(sources=retrieved.sources)


@router.post("/query", response_model=QueryResponse)
async def query(request: Request, collection: str, body: QueryRequest) -> Response | QueryResponse:
    """Retrieve, blend, answer. Streamed: events `sources`, `delta`..., `done`, or `error`."""
    service = service_of(request)
    if body.stream:
        return await stream_events(request, _events(service, collection, body), error_event="error")
    return await unless_disconnected(request, _whole(service, collection, body))


async def _whole(service: Service, collection: str, body: QueryRequest) -> QueryResponse:
    retrieved, order = await _order(service, collection, body)
    answer = _Answer(retrieved)
    async for item in service.blender.stream(order):
        answer.add(item)
    return answer.response()


async def _events(service: Service, collection: str, body: QueryRequest) -> Events:
    retrieved, order = await _order(service, collection, body)
    answer = _Answer(retrieved)
    async with aclosing(service.blender.stream(order)) as items:
        begun = False
        async for item in items:
            text = answer.add(item)
            if not begun:  # not before vLLM answers: until then an error is an HTTP status
                begun = True
                yield event(SearchResponse(sources=retrieved.sources).model_dump(mode="json"), name="sources")
            if text:
                yield event(QueryDelta(text=text).model_dump(), name="delta")
    yield event(answer.response().model_dump(mode="json"), name="done")


async def _order(service: Service, collection: str, body: QueryRequest) -> tuple[Retrieved, BlendOrder]:
    retrieved = await service.retrieval.search(collection, body.question, top_k=body.top_k)
    if body.reuse == "blend":
        await service.blender.prepare(retrieved.passages)
    preamble = retrieved.collection.preamble
    frame = await asyncio.to_thread(service.prompts.frame, [], body.question, preamble=preamble)
    order = BlendOrder(
        prompt=BlendPrompt(retrieved.frame(frame), retrieved.passages),
        reuse=body.reuse,
        wishes=Wishes(body.recompute_ratio, body.target_kl, body.selector),
        sampling={"max_tokens": body.max_tokens, "temperature": body.temperature},
    )
    return retrieved, order


class _Answer:
    """One answer as it grows."""

    def __init__(self, retrieved: Retrieved) -> None:
        self._retrieved = retrieved
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
            sources=self._retrieved.sources,
            report=self._report,
            usage=self._usage,
            finish_reason=self._finish_reason,
        )
