"""Measure how far blended answers are from full prefill, over a vLLM server with the connector."""

import asyncio
import uuid
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from kvblend.api.engine.answer_tokens import NUM_LIKELIEST, TOKEN_FIELDS, AnswerToken, answer_tokens
from kvblend.api.engine.full_prefill import full_prefill_tokens
from kvblend.api.engine.replicas import EngineFacts, Replica
from kvblend.api.kv.encode_context import NO_CONTEXT
from kvblend.api.kv.encode_run import EncodeRun
from kvblend.api.kv.encoder import Encoder, EncodeResult
from kvblend.api.kv.passage_kv import KVName, PassageKV
from kvblend.api.prompt.blend_prompt import BlendPrompt
from kvblend.api.quality.truncated_kl import answer_kl
from kvblend.core.calibration import EncodeKind
from kvblend.core.control import EngineInfo
from kvblend.core.errors import EngineUnavailableError, KVBlendError
from kvblend.core.order_fields import with_order
from kvblend.eval.calibration.prompts import CalibrationPrompt

__all__ = ["ANSWER_TOKENS", "Divergence", "PromptMeter", "drop_passages", "engine_facts", "store_passages"]

ANSWER_TOKENS = 16
REPORT_WAIT_S = 10.0


@dataclass(frozen=True)
class Divergence:
    """One blended answer against full prefill: mean KL over its tokens in nats, how many of these are the ones that
    full prefill holds likeliest, and whether the first one is, and all are."""

    kl: float
    agreement: float
    first_agrees: bool

    @property
    def same_answer(self) -> bool:
        return self.agreement == 1.0


async def engine_facts(replica: Replica) -> tuple[EngineFacts, EngineInfo]:
    """What the server is. Raises EngineUnavailableError without a control channel, KVBlendError without logprobs."""
    facts = await replica.facts()
    if facts.info is None:
        raise EngineUnavailableError(
            f"no control channel answers at {replica.control.address}: without one nothing can be calibrated"
        )
    if facts.info.max_raw_logprobs < NUM_LIKELIEST:
        raise KVBlendError(
            f"the vLLM server gives the model's own log-probabilities of {facts.info.max_raw_logprobs} tokens at most; "
            f"{NUM_LIKELIEST} are needed (its --max-logprobs, with --logprobs-mode raw_logprobs)"
        )
    return facts, facts.info


async def store_passages(encoder: Encoder, prompt: CalibrationPrompt) -> list[KVName]:
    """Make sure that a prompt's KV of all kinds is in the store; returns what was not there before. Raises
    KVBlendError."""
    preamble_ids = next(iter(prompt.kinds.values())).frame.preamble_ids
    preamble = [EncodeRun.alone(NO_CONTEXT, preamble_ids)] if preamble_ids else []
    stored: list[KVName] = []
    for run in (*preamble, *prompt.runs):
        result = await encoder.encode_one(run)
        if result is EncodeResult.FAILED:
            raise KVBlendError("a passage could not be encoded; the warning above says why")
        if result is EncodeResult.STORED:
            stored += run.names
    return stored


async def drop_passages(passage_kv: PassageKV, info: EngineInfo, names: Sequence[KVName]) -> None:
    """Delete what `store_passages` added."""
    await passage_kv.delete([info.model_fingerprint], names)


class PromptMeter:
    """Answers one prompt over a context that is blended of passages of any kind at any ratio, and compares with full
    prefill, whose prompt is prefilled once where the server has a prefix cache, and an answer compared once."""

    def __init__(self, replica: Replica, facts: EngineFacts, prompt: CalibrationPrompt) -> None:
        self._replica, self._facts, self._prompt = replica, facts, prompt
        self._token_ids = next(iter(prompt.kinds.values())).token_ids
        self._salt = uuid.uuid4().hex
        self._full: dict[tuple[int, ...], list[AnswerToken]] = {}
        self._prefilling = asyncio.Lock()

    async def measure(self, kind: EncodeKind, recompute_ratio: float) -> Divergence:
        """Answer greedily, at most 16 tokens. Raises KVBlendError where the context is not blended as a whole."""
        answer = await self._blended_answer(self._prompt.kinds[kind], recompute_ratio)
        full = await self._full_prefill(answer)
        agrees = [theirs.token_id == ours.token_id for theirs, ours in zip(full, answer, strict=True)]
        return Divergence(answer_kl(full, answer), fmean(agrees), agrees[0])

    async def _blended_answer(self, prompt: BlendPrompt, recompute_ratio: float) -> list[AnswerToken]:
        report_id = uuid.uuid4().hex
        body: dict[str, Any] = {
            "model": self._facts.model,
            "prompt": prompt.token_ids,
            "max_tokens": ANSWER_TOKENS,
            "temperature": 0.0,
            "cache_salt": report_id,  # or a prompt that somebody sent before would be an exact prefix hit
            **TOKEN_FIELDS,
        }
        assert self._facts.info is not None
        order = prompt.order(recompute_ratio=recompute_ratio, report_id=report_id)
        body = with_order(
            body, order, prompt.token_ids, salted=self._facts.info.salted, proxied=self._facts.info.proxied
        )
        answer: list[AnswerToken] = []
        async with aclosing(self._replica.engine.stream("/v1/completions", body)) as chunks:
            async for chunk in chunks:
                answer += answer_tokens(chunk)
        report = await self._replica.control.report(report_id, wait_s=REPORT_WAIT_S)
        if report is None or report.outcome != "blended" or report.missed_passages:
            reason = "the control channel gave no report" if report is None else report.reason or "passages are missing"
            raise KVBlendError(f"a prompt was not blended: {reason}")
        return answer

    async def _full_prefill(self, answer: Sequence[AnswerToken]) -> list[AnswerToken]:
        taken = tuple(token.token_id for token in answer)
        async with self._prefilling:
            if taken not in self._full:
                self._full[taken] = await full_prefill_tokens(
                    self._replica, self._facts, prompt_ids=self._token_ids, answer=answer, cache_salt=self._salt
                )
        return self._full[taken]
