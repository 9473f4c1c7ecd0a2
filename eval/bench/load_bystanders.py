"""Plain requests that decode while others are measured, and the gaps between their tokens."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from kvblend.eval.bench.load_client import has_token
from kvblend.eval.bench.load_measured import Measured
from kvblend.sdk import AsyncClient

__all__ = ["BYSTANDER_TOKENS", "bystanders"]

BYSTANDER_TOKENS = 200
"""Of one answer; the next request follows at once."""


@asynccontextmanager
async def bystanders(client: AsyncClient, texts: Sequence[str], measured: Measured) -> AsyncIterator[None]:
    """Have a bystander for each text decode while the block runs, from before its beginning on.

    A gap is noted where measured requests are in flight at its end. A bystander that fails is noted as a failure
    and not restarted.
    """
    decoding = [asyncio.Event() for _ in texts]
    tasks = [
        asyncio.create_task(_stand_by(client, text, measured, event), name="bystander")
        for text, event in zip(texts, decoding, strict=True)
    ]
    try:
        await asyncio.gather(*(event.wait() for event in decoding))
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _stand_by(client: AsyncClient, text: str, measured: Measured, decoding: asyncio.Event) -> None:
    with measured.failures_noted("a bystander"):
        while True:
            await _decode(client, text, measured, decoding)
    decoding.set()  # it failed: whoever waits for it waits no longer


async def _decode(client: AsyncClient, text: str, measured: Measured, decoding: asyncio.Event) -> None:
    """One answer. What comes before the first text, its prefill among it, is no gap."""
    last: float | None = None
    extra = {"max_tokens": BYSTANDER_TOKENS, "temperature": 0.0, "ignore_eos": True}
    async for chunk in client.stream_chat([{"role": "user", "content": text}], extra=extra):
        if not has_token(chunk):
            continue
        now = time.perf_counter()
        if last is not None:
            if measured.num_in_flight:
                measured.gaps_ms.append((now - last) * 1e3)
            last = now
        elif any(choice.delta.content for choice in chunk.choices):  # the first chunk names the role alone
            last = now
            decoding.set()
