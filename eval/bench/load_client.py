"""One request as a client sees it: when its first token came, when it ended, and how its context was made."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from kvblend.core.errors import KVBlendError
from kvblend.core.report import BlendReport
from kvblend.core.rest import BlendOptions, Reuse
from kvblend.eval.bench.load_prompts import Prompt
from kvblend.sdk import AsyncClient
from kvblend.sdk.chat import ChatChunk

__all__ = ["Answer", "ask", "has_token", "load_client"]


@dataclass(frozen=True)
class Answer:
    """Milliseconds from the request to its first token and to its end, and the service's report."""

    ttft_ms: float
    e2e_ms: float
    report: BlendReport


@asynccontextmanager
async def load_client(url: str) -> AsyncIterator[AsyncClient]:
    """A client that never waits for a connection of its own, however many requests are in flight."""
    transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=None, max_keepalive_connections=None))
    async with AsyncClient(url, transport=transport) as client:
        yield client


async def ask(
    client: AsyncClient,
    prompt: Prompt,
    *,
    mode: Reuse,
    max_tokens: int,
    cache_salt: str | None = None,
    recompute_ratio: float | None = None,
) -> Answer:
    """Stream an answer of exactly `max_tokens` tokens. Raises KVBlendError where it fails or lacks its report.

    Prompts with another `cache_salt` share nothing in vLLM's prefix cache.
    """
    options = BlendOptions(documents=list(prompt.documents), reuse=mode, recompute_ratio=recompute_ratio)
    extra: dict[str, Any] = {"max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True}
    if cache_salt is not None:
        extra["cache_salt"] = cache_salt
    first: float | None = None
    report: BlendReport | None = None
    began = time.perf_counter()
    messages = [{"role": "user", "content": prompt.question}]
    async for chunk in client.stream_chat(messages, blend=options, extra=extra):
        if first is None and has_token(chunk):
            first = time.perf_counter()
        if chunk.kvblend is not None:
            report = chunk.kvblend.report
    ended = time.perf_counter()
    if first is None or report is None:
        raise KVBlendError(f"the answer to {prompt.question!r} has no token or no report")
    return Answer((first - began) * 1e3, (ended - began) * 1e3, report)


def has_token(chunk: ChatChunk) -> bool:
    """Whether a chunk came of a token; some tokens have no text."""
    return any(choice.delta.content is not None for choice in chunk.choices)
