"""Requests with nothing to blend: vLLM's own answer, whole or streamed, with a report that says so."""

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from kvblend.api.engine.answer_route import ending_with_usage
from kvblend.api.engine.replicas import EngineFacts, Replica, Replicas
from kvblend.api.metrics import Metrics
from kvblend.core.report import BlendReport

__all__ = ["PlainAnswers"]

NO_DOCUMENTS = "no documents were given"


class PlainAnswers:
    """Passes OpenAI requests through to the least busy vLLM server."""

    def __init__(self, replicas: Replicas, metrics: Metrics) -> None:
        self._replicas = replicas
        self._metrics = metrics

    async def whole(self, path: str, fields: Mapping[str, Any]) -> tuple[dict[str, Any], BlendReport]:
        """vLLM's answer to `POST path`. Its time to first token is not known. Raises what `EngineClient` raises."""
        answer = await self._replicas.answer(path, fields)
        return answer, self._report(answer.get("usage"), ttft_ms=None)

    async def stream(self, path: str, fields: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any] | BlendReport, None]:
        """vLLM's chunks, one of them with `usage`, then the report. Closing it aborts the request. Raises what
        `EngineClient` raises."""
        body = ending_with_usage(fields)
        usage: dict[str, Any] | None = None
        ttft_ms: float | None = None
        sent_at = time.perf_counter()

        async def ask(replica: Replica, facts: EngineFacts) -> AsyncGenerator[dict[str, Any], None]:
            with replica.request():
                async with aclosing(replica.engine.stream(path, {"model": facts.model, **body})) as chunks:
                    async for chunk in chunks:
                        yield chunk

        async with aclosing(self._replicas.answers(ask)) as chunks:
            async for chunk in chunks:
                if ttft_ms is None:
                    ttft_ms = (time.perf_counter() - sent_at) * 1000
                usage = chunk.get("usage") or usage
                yield chunk
        yield self._report(usage, ttft_ms=ttft_ms)

    def _report(self, usage: Mapping[str, Any] | None, *, ttft_ms: float | None) -> BlendReport:
        report = BlendReport(
            outcome="prefilled",
            reason=NO_DOCUMENTS,
            prompt_tokens=(usage or {}).get("prompt_tokens", 0),
            ttft_ms=ttft_ms,
        )
        self._metrics.answer(report)
        return report
