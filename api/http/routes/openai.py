"""OpenAI-compatible routes: chat and text completions, with passages to blend or without."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from kvblend.api.access.caller import caller_of
from kvblend.api.access.engine_fields import engine_fields
from kvblend.api.engine.answer_route import CHAT, COMPLETIONS, AnswerRoute
from kvblend.api.engine.blend_order import BlendOrder
from kvblend.api.http.disconnect import unless_disconnected
from kvblend.api.http.guarded_route import GuardedRoute, needs
from kvblend.api.http.openai_body import (
    ChatBody,
    ChatRequest,
    CompletionBody,
    CompletionRequest,
    Conversation,
    split_conversation,
)
from kvblend.api.http.passed_body import without_orders
from kvblend.api.http.routes.engine import pass_on
from kvblend.api.http.sse import Events, event, stream_events, text_event
from kvblend.api.prompt.builder import Frame
from kvblend.api.prompt.chat_frames import messages_with_passages
from kvblend.api.prompt.retrieval import Retrieved
from kvblend.api.service import Service, service_of
from kvblend.core.errors import InvalidRequestError
from kvblend.core.report import BlendReport
from kvblend.core.rest import Source

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["openai"], route_class=GuardedRoute)


@router.post("/chat/completions")
@needs("query", work="answer")
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    """Answer a conversation. `kvblend.documents`, or what is retrieved from `kvblend.collection` for the last user
    message, goes in front of that message."""
    if isinstance(body, dict):
        return await _nothing_named(request, CHAT, body)
    service = service_of(request)
    if body.kvblend is None or not body.blends:
        return await _plain(service, request, CHAT, body)
    body.check_goes_with_documents()
    conversation, tenant = split_conversation(body.messages), caller_of(request).tenant
    context = await service.retrieval.context(body.kvblend, query=conversation.question, tenant=tenant)
    context = await service.order.arrange(context, body.kvblend.order, reuse=body.kvblend.reuse)
    order = await _chat_order(service, body, conversation, context, tenant)
    return await _answered(service, request, body, order, context.sources)


async def _chat_order(
    service: Service, body: ChatBody, conversation: Conversation, context: Retrieved, tenant: str
) -> BlendOrder:
    assert body.kvblend is not None
    if conversation.has_media:  # it has no tokens before vLLM has seen it
        return _text_order(service, body, conversation, context, prefilled="the messages hold more than text")
    if (reason := await service.blender.why_text()) is not None:
        order = _text_order(service, body, conversation, context, prefilled=reason)
        return await service.drop_in.match(CHAT, order.sampling, body.kvblend, tenant=tenant) or order
    if body.kvblend.reuse == "blend":
        await service.blender.prepare(context.passages)
    fields = body.for_engine()
    frame = await service.chat_frames.frame(
        conversation.later,
        conversation.question,
        earlier=conversation.earlier,
        preamble=context.collection.preamble if conversation.preamble is None else conversation.preamble,
        fields=fields,
    )
    if frame is None:
        return _text_order(
            service, body, conversation, context, prefilled="vLLM does not render the messages to tokens"
        )
    if conversation.preamble is None and not conversation.earlier and not body.has_own_template:
        frame = context.frame(frame)
    return BlendOrder(context.prompt(frame), body.kvblend, fields, CHAT)


def _text_order(
    service: Service, body: ChatBody, conversation: Conversation, context: Retrieved, *, prefilled: str
) -> BlendOrder:
    """The passages as text in the messages, for vLLM to lay out and prefill."""
    assert body.kvblend is not None
    passages = [source.text for source in sorted(context.sources, key=lambda source: source.place or 0)]
    preamble = context.collection.preamble if conversation.preamble is None else None
    takes_system = body.has_own_template or service.prompts.takes_system_message
    messages = messages_with_passages(body.messages, passages, preamble=preamble, takes_system_message=takes_system)
    prompt = context.prompt(Frame((), ()))
    return BlendOrder(prompt, body.kvblend, {**body.for_engine(), "messages": messages}, CHAT, prefilled)


@router.post("/completions")
@needs("query", work="answer")
async def completions(request: Request, body: CompletionRequest) -> Response:
    """Continue a prompt of text or tokens; passages, where there are any, go in front of it."""
    if isinstance(body, dict):
        return await _nothing_named(request, COMPLETIONS, body)
    service = service_of(request)
    if body.kvblend is None or not body.blends:
        return await _plain(service, request, COMPLETIONS, body)
    question, tenant = body.prompt, caller_of(request).tenant
    if isinstance(question, list) and not all(isinstance(item, int) for item in question):
        raise InvalidRequestError("with documents, the prompt is one text or one list of token ids", param="prompt")
    if isinstance(question, list) and not body.kvblend.documents:
        raise InvalidRequestError("passages are retrieved for a text, not for token ids", param="prompt")
    body.check_goes_with_documents()
    context = await service.retrieval.context(
        body.kvblend, query=question if isinstance(question, str) else "", tenant=tenant
    )
    context = await service.order.arrange(context, body.kvblend.order, reuse=body.kvblend.reuse)
    if body.kvblend.reuse == "blend":
        await service.blender.prepare(context.passages)
    frame: Frame = await service.query_threads.run(service.prompts.raw_frame, question)  # type: ignore[arg-type]
    sampling = {"max_tokens": 16, **body.for_engine("prompt")}
    order = BlendOrder(context.prompt(frame), body.kvblend, sampling)
    return await _answered(service, request, body, order, context.sources)


async def _nothing_named(request: Request, route: AnswerRoute, fields: dict[str, Any]) -> Response:
    """A request without a field of ours is vLLM's, as it came; blended where ingested passages stand in its prompt."""
    stream, options = fields.get("stream") or False, fields.get("stream_options") or {}
    if isinstance(stream, bool) and isinstance(options, dict):  # else vLLM says what is wrong
        service, tenant = service_of(request), caller_of(request).tenant
        order = await service.drop_in.match(route, without_orders(fields), tenant=tenant)
        if order is not None:
            wants_usage = bool(options.get("include_usage"))
            return await _blended(service, request, order, order.sources, stream=stream, wants_usage=wants_usage)
    return await pass_on(request, takes_salt=True, fields=fields)


async def _plain(service: Service, request: Request, route: AnswerRoute, body: ChatBody | CompletionBody) -> Response:
    """No passages named: vLLM's own answer, blended where ingested ones stand in the prompt, with the report."""
    tenant = caller_of(request).tenant
    order = await service.drop_in.match(route, body.for_engine(), body.kvblend, tenant=tenant)
    if order is not None:
        return await _answered(service, request, body, order, order.sources)
    fields = engine_fields(body.for_engine(), salt=service.collections.salts.of(tenant))
    if body.stream:
        events = _reported(service.plain.stream(route.path, fields), [], wants_usage=body.wants_usage)
        return await stream_events(request, events)
    answer, report = await unless_disconnected(request, service.plain.whole(route.path, fields))
    return JSONResponse({**answer, **kvblend_field(report, [])})


async def _answered(
    service: Service,
    request: Request,
    body: ChatBody | CompletionBody,
    order: BlendOrder,
    sources: Sequence[Source],
) -> Response:
    stream = bool(body.stream)
    return await _blended(service, request, order, sources, stream=stream, wants_usage=body.wants_usage)


async def _blended(
    service: Service,
    request: Request,
    order: BlendOrder,
    sources: Sequence[Source],
    *,
    stream: bool,
    wants_usage: bool,
) -> Response:
    if stream:
        events = _reported(service.blender.stream(order), sources, wants_usage=wants_usage)
        return await stream_events(request, events)
    answer, report = await unless_disconnected(request, service.blender.whole(order))
    return JSONResponse({**answer, **kvblend_field(report, sources)})


async def _reported(
    items: AsyncGenerator[dict[str, Any] | BlendReport, None], sources: Sequence[Source], *, wants_usage: bool
) -> Events:
    """Chunks as they come; what ends a choice is held back until the report is there, which the last chunk carries."""
    held: list[dict[str, Any]] = []
    async with aclosing(items):
        async for item in items:
            if isinstance(item, BlendReport):
                held.append({**(held.pop() if held else {}), **kvblend_field(item, sources)})
            elif not item["choices"] and not wants_usage:
                continue
            elif not item["choices"] or any(choice.get("finish_reason") for choice in item["choices"]):
                held.append(item)
            else:
                yield event(item)
    for chunk in held:
        yield event(chunk)
    yield text_event("[DONE]")


def kvblend_field(report: BlendReport, sources: Sequence[Source]) -> dict[str, Any]:
    """What an answer of ours holds beside vLLM's fields."""
    return {
        "kvblend": {
            "report": report.model_dump(mode="json"),
            "sources": [source.model_dump(mode="json") for source in sources],
        }
    }
