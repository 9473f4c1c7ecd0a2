"""Send a prompt to vLLM with its context plan, stream what comes back, and report how the context was made."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from kvblend.api.access.engine_fields import engine_fields
from kvblend.api.collections import Collections
from kvblend.api.engine.answer_route import ending_with_usage
from kvblend.api.engine.blend_order import BlendOrder
from kvblend.api.engine.replicas import EngineFacts, Replica, Replicas
from kvblend.api.engine.seen_answer import SeenAnswer
from kvblend.api.engine.token_report import with_tokens
from kvblend.api.kv.encoder import Encoder
from kvblend.api.kv.missing import MissingKV, encode_missing, find_missing
from kvblend.api.kv.passage_kv import PassageKV
from kvblend.api.metrics import Metrics
from kvblend.api.prompt.blend_prompt import BlendPrompt, PromptPassage
from kvblend.api.prompt.builder import PromptBuilder
from kvblend.api.quality.answer_sample import AnswerSample
from kvblend.api.quality.divergence import with_divergence
from kvblend.api.quality.gate import ContextCounts, Decision, Gate
from kvblend.api.quality.live_guard import LiveGuard
from kvblend.api.request_context import step
from kvblend.core.order_fields import SESSION, with_order
from kvblend.core.report import BlendReport

__all__ = ["Blender"]

REPORT_WAIT_S = 2.0
NO_CHANNEL = "the vLLM server has no control channel of kvblend"


class Blender:
    """Answers orders through whichever vLLM server suits them best."""

    def __init__(
        self,
        replicas: Replicas,
        collections: Collections,
        passage_kv: PassageKV,
        encoder: Encoder,
        gate: Gate,
        guard: LiveGuard,
        metrics: Metrics,
        prompts: PromptBuilder,
    ) -> None:
        self._replicas = replicas
        self._collections = collections
        self._passage_kv = passage_kv
        self._encoder = encoder
        self._gate = gate
        self._guard = guard
        self._metrics = metrics
        self._prompts = prompts

    async def prepare(self, passages: Sequence[PromptPassage]) -> None:
        """Begin to promote passages that a prompt will hold. Raises EngineUnavailableError."""
        _, facts = await self._replicas.choose()
        if facts.info is not None and passages:
            self._passage_kv.promote_soon(facts.info, [passage.names[0] for passage in passages])

    async def why_text(self) -> str | None:
        """Why a chat's prompt can be given as its messages alone; None where vLLM takes its tokens beside them.

        What hands a request from a prefill node to a decode node lets none through, and where no control channel
        answers there may be such a one. Raises EngineUnavailableError.
        """
        _, facts = await self._replicas.choose()
        if facts.info is None:
            return NO_CHANNEL
        return "vLLM is told a chat by its messages alone" if facts.info.proxied else None

    async def stream(self, order: BlendOrder) -> AsyncGenerator[dict[str, Any] | BlendReport, None]:
        """Yield vLLM's chunks, the last with `usage`, then the report. Closing it aborts the request.

        Without `max_tokens` the answer may fill the model's length. Passages and a preamble without KV are encoded
        in the background afterwards. Raises PromptTooLongError, InvalidRequestError, EngineUnavailableError.
        """
        async with aclosing(self._replicas.answers(partial(self._streamed, order), wanted=order.wanted)) as items:
            async for item in items:
                yield item

    async def whole(self, order: BlendOrder) -> tuple[dict[str, Any], BlendReport]:
        """vLLM's answer as it is, and the report. As `stream`."""
        async with aclosing(self._replicas.answers(partial(self._answered, order), wanted=order.wanted)) as answers:
            return await anext(answers)

    async def _streamed(
        self, order: BlendOrder, replica: Replica, facts: EngineFacts
    ) -> AsyncGenerator[dict[str, Any] | BlendReport, None]:
        """`stream` from one server."""
        asked = await self._asked(order, replica, facts)
        asking: asyncio.Task[BlendReport | None] | None = None
        with replica.request():
            try:
                body = ending_with_usage(asked.body)
                async with aclosing(replica.engine.stream(order.route.path, body, headers=asked.headers)) as chunks:
                    async for chunk in chunks:
                        if asked.answer.see(chunk) and asked.has_plan:
                            asking = asyncio.create_task(asked.blended())
                        yield asked.sample.see(chunk) if asked.sample else chunk
                report = asked.answer.report(await asking if asking else None)
            finally:
                if asking:
                    asking.cancel()
        yield await self._ended(asked, report)

    async def _answered(
        self, order: BlendOrder, replica: Replica, facts: EngineFacts
    ) -> AsyncGenerator[tuple[dict[str, Any], BlendReport], None]:
        """`whole` from one server: the one item."""
        asked = await self._asked(order, replica, facts)
        with replica.request():
            answer = await replica.engine.post(order.route.path, asked.body, headers=asked.headers)
            asked.answer.see_whole(answer)
            blended = asked.answer.came_with
            if blended is None and asked.has_plan:
                blended = await asked.blended()
        if asked.sample:
            answer = asked.sample.see(answer)
        if answer.get("kv_transfer_params"):  # the connector's report, which ours has in it
            answer = {**answer, "kv_transfer_params": None}
        yield answer, await self._ended(asked, asked.answer.report(blended))

    async def _asked(self, order: BlendOrder, replica: Replica, facts: EngineFacts) -> "_Asked":
        """What is to be asked of a server."""
        with step("kvblend.plan"):
            return await self._planned(order, replica, facts)

    async def _planned(self, order: BlendOrder, replica: Replica, facts: EngineFacts) -> "_Asked":
        given = {name: value for name, value in order.sampling.items() if value is not None}
        body: dict[str, Any] = {"model": facts.model, **engine_fields(given, salt=order.prompt.salt)}
        if order.prefilled is not None:
            return self._made(order, replica, facts, body, MissingKV(), None, None)
        if not order.as_sent:
            limit = order.route.max_tokens(given)
            order.prompt.check_length(max_model_len=facts.max_model_len, max_tokens=1 if limit is None else limit)
        missing = MissingKV()
        if facts.info is not None and order.choices.reuse == "blend" and order.prompt.passages:
            missing = await find_missing(order.prompt, self._passage_kv, facts.info)
        counts = _counts(order.prompt, missing)
        decision = await self._decide(order, facts, counts)
        report_id = uuid.uuid4().hex
        body = self._with_plan(body, order, facts, decision, counts, report_id)
        if not order.as_sent:
            body = order.route.with_prompt(body, order.prompt.token_ids, max_model_len=facts.max_model_len)
        has_plan = decision is not None and decision.prefill_reason is None
        return self._made(order, replica, facts, body, missing, decision, report_id if has_plan else None)

    def _made(
        self,
        order: BlendOrder,
        replica: Replica,
        facts: EngineFacts,
        body: dict[str, Any],
        missing: MissingKV,
        decision: Decision | None,
        report_id: str | None,
    ) -> "_Asked":
        sample, prompt_ids = None, order.prompt.token_ids
        if report_id is not None and order.choices.report_divergence:
            sample = AnswerSample.wanted(replica, facts, body, prompt_ids=prompt_ids)
        elif report_id is not None and not order.as_sent:
            sample = self._guard.sample(replica, facts, body, prompt_ids=prompt_ids)
        answer = SeenAnswer(
            num_context=order.prompt.num_context_tokens,
            reason=_prefill_reason(order, facts, decision),
            calibrated=decision is not None and decision.calibrated,
        )
        body = {**body, **order.route.token_fields} if sample else body
        return _Asked(order, replica, body, missing, decision, report_id, sample, answer)

    async def _ended(self, asked: "_Asked", report: BlendReport) -> BlendReport:
        """Count a finished answer, and have encoded what its prompt lacked; returns the caller's report."""
        decision = asked.decision
        self._metrics.answer(report)
        if decision:
            self._metrics.decision(decision.verdict)
        wants_divergence = asked.order.choices.report_divergence
        if asked.sample and not wants_divergence:
            self._guard.add(asked.sample, report, target=decision.target if decision else None)
        if decision is None or decision.verdict != "unable":  # whose KV nobody would use
            recurs = asked.order.prompt.frame.recurs
            await encode_missing(asked.missing, self._collections, self._encoder, preamble=recurs)
        if asked.sample and wants_divergence and report.outcome != "prefilled":
            report = await with_divergence(report, asked.sample, self._prompts)
        if asked.order.choices.report_tokens and asked.order.prefilled is None:  # else it is vLLM that has the tokens
            return await asyncio.to_thread(with_tokens, report, asked.order.prompt, self._prompts)
        return report

    async def _decide(self, order: BlendOrder, facts: EngineFacts, counts: ContextCounts) -> Decision | None:
        """The gate's word on this prompt; None where there is nothing to blend."""
        if order.choices.reuse != "blend" or facts.info is None or not order.prompt.passages:
            return None
        return await self._gate.decide(order.choices, counts, info=facts.info)

    @staticmethod
    def _with_plan(
        body: dict[str, Any],
        order: BlendOrder,
        facts: EngineFacts,
        decision: Decision | None,
        counts: ContextCounts,
        report_id: str,
    ) -> dict[str, Any]:
        if order.choices.reuse == "none":
            return {**body, "cache_salt": uuid.uuid4().hex}  # so that vLLM's own prefix cache cannot hit either
        if facts.info is None or decision is None or decision.prefill_reason is not None:
            return body
        plan = order.prompt.order(
            recompute_ratio=decision.recompute_ratio(counts),
            ratios=decision.ratios,
            selector=order.choices.selector or "probe",
            report_id=report_id,
            report_tokens=order.choices.report_tokens,
        )
        return with_order(body, plan, order.prompt.token_ids, salted=facts.info.salted, proxied=facts.info.proxied)


def _counts(prompt: BlendPrompt, missing: MissingKV) -> ContextCounts:
    preamble_ids = prompt.frame.preamble_ids
    num_exact = len(preamble_ids) if missing.preamble is None else 0
    return ContextCounts(
        reused=missing.reused,
        fresh=prompt.num_context_tokens - sum(missing.reused.values()) - num_exact,
        question=len(prompt.frame.question_ids),
        prompt=len(prompt.token_ids),
    )


@dataclass(frozen=True)
class _Asked:
    """A request as it is sent to a server. `report_id` is None where it carries no plan."""

    order: BlendOrder
    replica: Replica
    body: dict[str, Any]
    missing: MissingKV
    decision: Decision | None
    report_id: str | None
    sample: AnswerSample | None
    answer: SeenAnswer

    @property
    def has_plan(self) -> bool:
        return self.report_id is not None

    @property
    def headers(self) -> dict[str, str]:
        """By which a router in front of several servers finds the one that has blended this context before."""
        return {SESSION: self.order.session} if self.has_plan else {}

    async def blended(self) -> BlendReport | None:
        """The connector's report, once its first token is there."""
        assert self.report_id is not None
        return await self.replica.control.report(self.report_id, wait_s=REPORT_WAIT_S)


def _prefill_reason(order: BlendOrder, facts: EngineFacts, decision: Decision | None) -> str | None:
    """Why a context is prefilled; None where it is to be blended."""
    if order.prefilled is not None:
        return order.prefilled
    if order.choices.reuse != "blend":
        return f"asked for: reuse is {order.choices.reuse}"
    if not order.prompt.passages:
        return "the prompt holds no passages"
    if facts.info is None:
        return NO_CHANNEL
    return decision.prefill_reason if decision else None
