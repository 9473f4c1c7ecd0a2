"""Send a prompt to vLLM with its context plan, stream what comes back, and report how the context was made."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from kvblend.api.answer_tokens import TOKEN_FIELDS
from kvblend.api.blend_prompt import BlendPrompt, PromptPassage
from kvblend.api.encoder import NO_CONTEXT, Encoder
from kvblend.api.gate import ContextCounts, Decision, Gate, Wishes
from kvblend.api.live_guard import LiveGuard
from kvblend.api.metrics import Metrics
from kvblend.api.passage_kv import PassageKV
from kvblend.api.replica import EngineFacts, Replicas
from kvblend.core.identity import token_hash
from kvblend.core.report import BlendReport
from kvblend.core.rest import Reuse

__all__ = ["BlendOrder", "Blender"]

REPORT_WAIT_S = 2.0


@dataclass(frozen=True)
class BlendOrder:
    """A prompt, how to make its context, and vLLM's own fields (`sampling`, e.g. max_tokens, temperature, stop)."""

    prompt: BlendPrompt
    reuse: Reuse = "blend"
    wishes: Wishes = field(default_factory=Wishes)
    sampling: Mapping[str, Any] = field(default_factory=dict)


class Blender:
    """Answers orders through whichever vLLM server is least busy."""

    def __init__(
        self,
        replicas: Replicas,
        passage_kv: PassageKV,
        encoder: Encoder,
        gate: Gate,
        guard: LiveGuard,
        metrics: Metrics,
    ) -> None:
        self._replicas = replicas
        self._passage_kv = passage_kv
        self._encoder = encoder
        self._gate = gate
        self._guard = guard
        self._metrics = metrics

    async def prepare(self, passages: Sequence[PromptPassage]) -> None:
        """Begin to promote passages that a prompt will hold. Raises EngineUnavailableError."""
        _, facts = await self._replicas.choose()
        if facts.info is not None and passages:
            self._passage_kv.promote_soon(facts.info, [passage.name for passage in passages])

    async def stream(self, order: BlendOrder) -> AsyncGenerator[dict[str, Any] | BlendReport, None]:
        """Yield vLLM's completion chunks, the last with `usage`, then the report. Closing it aborts the request.

        Without `max_tokens` the answer may fill the model's length. Passages and a preamble without KV are encoded
        in the background afterwards. Raises PromptTooLongError, InvalidRequestError, EngineUnavailableError.
        """
        replica, facts = await self._replicas.choose()
        max_tokens = order.sampling.get("max_tokens")
        order.prompt.check_length(max_model_len=facts.max_model_len, max_tokens=1 if max_tokens is None else max_tokens)
        num_prompt = len(order.prompt.token_ids)
        missing = await self._missing(order, facts)
        decision = await self._decide(order, facts, missing)
        report_id = uuid.uuid4().hex
        body = {
            "model": facts.model,
            "max_tokens": facts.max_model_len - num_prompt,
            **{name: value for name, value in order.sampling.items() if value is not None},
            **self._engine_fields(order, decision, report_id),
            "prompt": order.prompt.token_ids,
            "stream_options": {"include_usage": True},
        }
        sample = self._guard.sample(replica, facts, body)
        if sample:
            body |= TOKEN_FIELDS
        answer = _Answer(order, facts, decision)
        asking: asyncio.Task[BlendReport | None] | None = None
        with replica.request():
            try:
                async with aclosing(replica.engine.stream("/v1/completions", body)) as chunks:
                    async for chunk in chunks:
                        if answer.see(chunk) and "kv_transfer_params" in body:
                            asking = asyncio.create_task(replica.control.report(report_id, wait_s=REPORT_WAIT_S))
                        yield sample.see(chunk) if sample else chunk
                report = answer.report(await asking if asking else None)
            finally:
                if asking:
                    asking.cancel()
        self._metrics.answer(report)
        if decision:
            self._metrics.decision(decision.verdict)
        if sample:
            self._guard.add(sample, report, target_kl=decision.target_kl if decision else None)
        if decision is None or decision.verdict != "unable":  # whose KV nobody would use
            owner = next((passage.owner for passage in order.prompt.passages), None)
            recurs = order.prompt.frame.recurs
            self._encoder.encode_soon([each for each in missing if recurs or each[0] is not NO_CONTEXT], owner=owner)
        yield report

    async def _decide(
        self, order: BlendOrder, facts: EngineFacts, missing: Sequence[tuple[Any, tuple[int, ...]]]
    ) -> Decision | None:
        """The gate's word on this prompt; None where there is nothing to blend."""
        prompt = order.prompt
        if order.reuse != "blend" or facts.info is None or not prompt.passages:
            return None
        absent = {(context.hash, token_hash(token_ids)) for context, token_ids in missing}
        num_reused = sum(len(passage.token_ids) for passage in prompt.passages if passage.name not in absent)
        preamble_ids = prompt.frame.preamble_ids
        is_exact = (NO_CONTEXT.hash, token_hash(preamble_ids)) not in absent
        counts = ContextCounts(
            reused=num_reused,
            fresh=prompt.num_context_tokens - num_reused - (len(preamble_ids) if is_exact else 0),
            question=len(prompt.frame.question_ids),
            prompt=len(prompt.token_ids),
        )
        return await self._gate.decide(order.wishes, counts, info=facts.info)

    @staticmethod
    def _engine_fields(order: BlendOrder, decision: Decision | None, report_id: str) -> dict[str, Any]:
        if order.reuse == "none":
            return {"cache_salt": uuid.uuid4().hex}  # so that vLLM's own prefix cache cannot hit either
        if decision is None or decision.prefill_reason is not None:
            return {}
        return order.prompt.plan_fields(
            recompute_ratio=decision.recompute_ratio, selector=order.wishes.selector or "probe", report_id=report_id
        )

    async def _missing(self, order: BlendOrder, facts: EngineFacts) -> list[tuple[Any, tuple[int, ...]]]:
        """What a blend of this prompt would want and the store lacks, each with its encode context."""
        if facts.info is None or order.reuse != "blend" or not order.prompt.passages:
            return []
        preamble_ids = order.prompt.frame.preamble_ids
        wanted = {passage.name: (passage.encode_context, passage.token_ids) for passage in order.prompt.passages}
        if preamble_ids:
            wanted[NO_CONTEXT.hash, token_hash(preamble_ids)] = (NO_CONTEXT, preamble_ids)
        return [wanted[name] for name in await self._passage_kv.missing(facts.info, list(wanted))]


class _Answer:
    """What is seen of one answer as its chunks go by."""

    def __init__(self, order: BlendOrder, facts: EngineFacts, decision: Decision | None) -> None:
        self._order = order
        self._facts = facts
        self._decision = decision
        self._sent_at = time.perf_counter()
        self._ttft_ms: float | None = None
        self._usage: dict[str, Any] = {}

    def see(self, chunk: dict[str, Any]) -> bool:
        """Note a chunk; True for the one that holds the first token."""
        self._usage = chunk.get("usage") or self._usage
        if self._ttft_ms is not None or not chunk.get("choices"):
            return False
        self._ttft_ms = (time.perf_counter() - self._sent_at) * 1000
        return True

    def report(self, blended: BlendReport | None) -> BlendReport:
        """The connector's report where there is one, else one of a plain prefill, with our own time to first token."""
        calibrated = self._decision is not None and self._decision.calibrated
        if blended:
            return blended.model_copy(update={"ttft_ms": self._ttft_ms, "calibrated": calibrated})
        details = self._usage.get("prompt_tokens_details") or {}
        num_context = self._order.prompt.num_context_tokens
        num_cached = min(details.get("cached_tokens") or 0, num_context)
        if self._order.reuse != "blend":
            reason = f"asked for: reuse is {self._order.reuse}"
        elif not self._order.prompt.passages:
            reason = "the prompt holds no passages"
        elif self._facts.info is None:
            reason = "the vLLM server has no control channel of kvblend"
        elif self._decision and self._decision.prefill_reason:
            reason = self._decision.prefill_reason
        else:
            reason = "the control channel gave no report"
        return BlendReport(
            outcome="prefilled",
            reason=reason,
            prompt_tokens=self._usage.get("prompt_tokens", 0),
            context_tokens=num_context,
            exact_tokens=num_cached,
            recomputed_tokens=num_context - num_cached,
            calibrated=calibrated,
            ttft_ms=self._ttft_ms,
        )
