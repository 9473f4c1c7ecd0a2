"""Bring a service's store to where a row begins: the passages that are to be known stored, and nothing under way."""

import asyncio
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import Progress

from kvblend.core.errors import KVBlendError
from kvblend.eval.bench.load_client import ask
from kvblend.eval.bench.load_prompts import Prompt
from kvblend.eval.bench.load_traffic import ClosedLoop
from kvblend.sdk import AsyncClient

__all__ = ["cost_fit_ended", "passage_bytes", "store_documents"]

NUM_CLIENTS = 8
LONGEST_ENCODE_S = 900.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0
FIT_BEGINS_S, FIT_ENDS_S, FIT_POLL_S = 60.0, 600.0, 0.2


async def store_documents(client: AsyncClient, documents: Sequence[str], console: Console) -> None:
    """Ask for each document alone until its KV is stored: the service encodes what it misses once it has answered.

    Raises KVBlendError where a request fails, or a document's KV is not there after a long time.
    """
    with Progress(console=console) as progress:
        task = progress.add_task("passages stored", total=len(documents))

        async def send(document: str) -> None:
            await _store(client, document)
            progress.advance(task)

        await ClosedLoop(NUM_CLIENTS).run(send, documents)


async def _store(client: AsyncClient, document: str) -> None:
    prompt = Prompt((document,), "Is it stored?")
    pause_s, deadline = FIRST_PAUSE_S, time.monotonic() + LONGEST_ENCODE_S
    while True:
        # a ratio of 0: one that is stored is loaded and no more
        answer = await ask(client, prompt, mode="blend", max_tokens=1, recompute_ratio=0.0)
        if not answer.report.missed_passages:
            return
        if time.monotonic() > deadline:
            raise KVBlendError(f"{document.splitlines()[0]!r} was not stored within {LONGEST_ENCODE_S:.0f} s")
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


async def cost_fit_ended(client: AsyncClient) -> bool:
    """Wait while a service that has just started times requests of its own; False where it was not seen to.

    It does so when nobody asks it, and from then on prefills prompts whose blend cannot pay. The passages that it
    does it with are the first in its empty store, and are deleted at the end.
    """
    return await _holds_files(client, True, FIT_BEGINS_S) and await _holds_files(client, False, FIT_ENDS_S)


async def _holds_files(client: AsyncClient, wanted: bool, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if any(tier.num_files for tier in (await client.kv_stats()).tiers) == wanted:
            return True
        await asyncio.sleep(FIT_POLL_S)
    return False


async def passage_bytes(client: AsyncClient) -> float:
    """The mean size of a passage's KV in the store, which must hold some."""
    tiers = (await client.kv_stats()).tiers
    return sum(tier.used_bytes for tier in tiers) / sum(tier.num_files for tier in tiers)
