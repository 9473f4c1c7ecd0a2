"""OpenAI-compatible routes: chat and text completions, with passages to blend or without, and the models."""

import asyncio
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from sse_starlette import ServerSentEvent

from kvblend.api.blend_prompt import BlendPrompt
from kvblend.api.blender import BlendOrder
from kvblend.api.disconnect import unless_disconnected
from kvblend.api.gate import Wishes
from kvblend.api.json_body import StrictRoute
from kvblend.api.openai_answer import ChatShape, CompletionShape, kvblend_field
from kvblend.api.openai_body import ChatBody, CompletionBody, split_conversation
from kvblend.api.prompt import Frame
from kvblend.api.service import Service, service_of
from kvblend.api.sse import Events, event, stream_events
from kvblend.core.errors import InvalidRequestError
from kvblend.core.report import BlendReport
from kvblend.core.rest import BlendOptions, Source

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["openai"], route_class=StrictRoute)


@router.post("/chat/completions")
async def chat_completions(request: Request, body: ChatBody) -> Response:
    """Answer a conversation. `kvblend.documents`, or what is retrieved from `kvblend.collection` for the last user
    message, goes in front of that message."""
    service = service_of(request)
    if body.kvblend is None or not body.blends:
        return await _plain(service, request, "/v1/chat/completions", body)
    if body.tools:
        raise InvalidRequestError("tools are not supported together with documents", param="tools")
    conversation = split_conversation(body.messages)
    context = await service.retrieval.context(body.kvblend, query=conversation.question)
    if body.kvblend.reuse == "blend":
        await service.blender.prepare(context.passages)
    frame = await asyncio.to_thread(
        service.prompts.frame,
        conversation.later,
        conversation.question,
        earlier=conversation.earlier,
        preamble=context.collection.preamble if conversation.preamble is None else conversation.preamble,
        template_options=body.chat_template_kwargs,
    )
    if conversation.preamble is None and not conversation.earlier:
        frame = context.frame(frame)
    sampling = body.for_engine(
        "messages", "stream_options", "max_completion_tokens", "logprobs", "top_logprobs", "chat_template_kwargs",
        "tools", "tool_choice",
    )  # fmt: skip
    if body.max_completion_tokens is not None:
        sampling["max_tokens"] = body.max_completion_tokens
    if body.logprobs:
        sampling["logprobs"] = body.top_logprobs or 0
    order = _order(body.kvblend, BlendPrompt(frame, context.passages), sampling)
    return await _blended(service, request, body, order, context.sources, ChatShape())


@router.post("/completions")
async def completions(request: Request, body: CompletionBody) -> Response:
    """Continue a prompt of text or tokens; passages, where there are any, go in front of it."""
    service = service_of(request)
    if body.kvblend is None or not body.blends:
        return await _plain(service, request, "/v1/completions", body)
    question = body.prompt
    if isinstance(question, list) and not all(isinstance(item, int) for item in question):
        raise InvalidRequestError("with documents, the prompt is one text or one list of token ids", param="prompt")
    if isinstance(question, list) and not body.kvblend.documents:
        raise InvalidRequestError("passages are retrieved for a text, not for token ids", param="prompt")
    context = await service.retrieval.context(body.kvblend, query=question if isinstance(question, str) else "")
    if body.kvblend.reuse == "blend":
        await service.blender.prepare(context.passages)
    frame: Frame = await asyncio.to_thread(service.prompts.raw_frame, question)  # type: ignore[arg-type]
    sampling = {"max_tokens": 16, **body.for_engine("prompt", "stream_options")}
    order = _order(body.kvblend, BlendPrompt(frame, context.passages), sampling)
    return await _blended(service, request, body, order, context.sources, CompletionShape())


@router.get("/models")
async def models(request: Request) -> dict[str, Any]:
    """The models that vLLM serves."""
    replica, _ = await service_of(request).replicas.choose()
    return {"object": "list", "data": await replica.engine.models()}


def _order(options: BlendOptions, prompt: BlendPrompt, sampling: dict[str, Any]) -> BlendOrder:
    return BlendOrder(
        prompt=prompt,
        reuse=options.reuse,
        wishes=Wishes(options.recompute_ratio, options.target_kl, options.selector),
        sampling=sampling,
    )


async def _plain(service: Service, request: Request, path: str, body: ChatBody | CompletionBody) -> Response:
    """Nothing to blend: vLLM's own answer, with a report that says so."""
    fields = body.for_engine()
    if body.stream:
        return await stream_events(request, _plain_events(service, path, fields))
    answer, report = await unless_disconnected(request, service.plain.whole(path, fields))
    return JSONResponse({**answer, **kvblend_field(report, [])})


async def _plain_events(service: Service, path: str, fields: dict[str, Any]) -> Events:
    """vLLM's chunks, each held until the next one is there, so that the last can carry the report."""
    held: dict[str, Any] | None = None
    async with aclosing(service.plain.stream(path, fields)) as items:
        async for item in items:
            if isinstance(item, BlendReport):
                held = {**(held or {}), **kvblend_field(item, [])}
            elif not item["choices"] or any(choice.get("finish_reason") for choice in item["choices"]):
                if held is not None:
                    yield event(held)
                held = item
            else:
                yield event(item)
    assert held is not None
    yield event(held)
    yield ServerSentEvent(data="[DONE]")


async def _blended(
    service: Service,
    request: Request,
    body: ChatBody | CompletionBody,
    order: BlendOrder,
    sources: list[Source],
    shape: ChatShape | CompletionShape,
) -> Response:
    if body.stream:
        return await stream_events(
            request, _blended_events(service, order, sources, shape, wants_usage=body.wants_usage)
        )
    return JSONResponse(await unless_disconnected(request, _blended_whole(service, order, sources, shape)))


async def _blended_whole(
    service: Service, order: BlendOrder, sources: list[Source], shape: ChatShape | CompletionShape
) -> dict[str, Any]:
    chunks: list[dict[str, Any]] = []
    extra: dict[str, Any] = {}
    async for item in service.blender.stream(order):
        if isinstance(item, BlendReport):
            extra = kvblend_field(item, sources)
        else:
            chunks.append(item)
    return {**shape.whole(chunks), **extra}


async def _blended_events(
    service: Service, order: BlendOrder, sources: list[Source], shape: ChatShape | CompletionShape, *, wants_usage: bool
) -> Events:
    """Chunks as they come; what ends a choice is held back until the report is there, which the last chunk carries."""
    held: list[dict[str, Any]] = []
    async with aclosing(service.blender.stream(order)) as items:
        async for item in items:
            if isinstance(item, BlendReport):
                held[-1] = {**held[-1], **kvblend_field(item, sources)}
                break
            if not item["choices"] and not wants_usage:
                continue
            chunk = shape.chunk(item)
            if not item["choices"] or any(choice.get("finish_reason") for choice in item["choices"]):
                held.append(chunk)
            else:
                yield event(chunk)
    for chunk in held:
        yield event(chunk)
    yield ServerSentEvent(data="[DONE]")
