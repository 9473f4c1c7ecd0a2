"""The rows of `bench load`, measured on a running service."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import Progress

from kvblend.core.rest import Reuse
from kvblend.eval.bench.load_bystanders import bystanders
from kvblend.eval.bench.load_client import ask
from kvblend.eval.bench.load_measured import Measured, hit_rate, load_row, percentile
from kvblend.eval.bench.load_prompts import Prompt, TracePrompts, distinct_documents
from kvblend.eval.bench.load_store import store_documents
from kvblend.eval.bench.load_traffic import ClosedLoop, Traffic
from kvblend.sdk import AsyncClient

__all__ = ["MODES", "LoadRun", "Mode"]

MODES: tuple[Reuse, ...] = ("blend", "prefix_cache", "none")
NUM_REPLAYED = 16
"""Warm requests that are asked in front of a row: as many as its prefix cache has a chance to hit."""
REPLAY = ClosedLoop(8)
NUM_REPEATS = 4
WINDOW = 16


@dataclass(frozen=True)
class Mode:
    """How a row's prompts are asked. `cache_salt` is the row's own: no row finds another's prompts in vLLM's cache."""

    reuse: Reuse
    cache_salt: str

    @classmethod
    def fresh(cls, reuse: Reuse) -> "Mode":
        """One whose prefix cache is empty."""
        return cls(reuse, uuid.uuid4().hex)


class LoadRun:
    """Measures on one service. What a request fails with goes to `failures`."""

    def __init__(
        self,
        client: AsyncClient,
        prompts: TracePrompts,
        *,
        answer_tokens: int,
        console: Console,
        bystander_texts: Sequence[str] = (),
        failures: list[str],
    ) -> None:
        self._client, self._prompts, self._console = client, prompts, console
        self._answer_tokens = answer_tokens
        self._bystander_texts = bystander_texts
        self._failures = failures

    async def store_warm(self) -> None:
        """Have the store hold every passage of the warm requests."""
        await store_documents(self._client, distinct_documents(self._prompts.warm), self._console)

    async def rows(
        self, traffics: Sequence[Traffic], modes: Sequence[Reuse], *, ingested: bool = False
    ) -> list[dict[str, Any]]:
        """A row for every traffic and mode, over the same requests. Where they blend, `store_warm` comes first.

        `ingested`: the passages of all requests are stored before they are asked.
        """
        rows = []
        for number, traffic in enumerate(traffics):
            prompts = self._prompts.measured(number)
            if ingested and "blend" in modes:
                await store_documents(self._client, distinct_documents(prompts), self._console)
            for reuse in modes:
                mode = Mode.fresh(reuse)
                name = f"{reuse}, {_described(traffic)}"
                await self._measure(f"{name}, replay", REPLAY, self._prompts.warm[-NUM_REPLAYED:], mode, max_tokens=1)
                measured = await self._measure(name, traffic, prompts, mode, bystander_texts=self._bystander_texts)
                rows.append(load_row(reuse, traffic, measured))
                if reuse == "blend":  # no passage is encoded while the next row is measured
                    await store_documents(self._client, distinct_documents(prompts), self._console)
        return rows

    async def repeat_rows(self, concurrencies: Sequence[int], modes: Sequence[Reuse]) -> list[dict[str, Any]]:
        """A row for every number of clients and mode but `none`: requests that were asked once, asked again.

        Every client has a request of its own, with passages of a warm request.
        """
        warm = self._prompts.warm
        rows = []
        for concurrency in concurrencies:
            traffic = ClosedLoop(concurrency)
            prompts = [
                Prompt(warm[-1 - client % len(warm)].documents, f"Question of client {client}: what do they say?")
                for client in range(concurrency)
            ]
            for reuse in modes:
                if reuse == "none":
                    continue
                mode, name = Mode.fresh(reuse), f"{reuse}, repeat, {_described(traffic)}"
                await self._measure(f"{name}, first", traffic, prompts, mode)
                measured = await self._measure(
                    name, traffic, prompts, mode, times=NUM_REPEATS, bystander_texts=self._bystander_texts
                )
                rows.append(load_row(reuse, traffic, measured, repeat=True))
        return rows

    async def curve(self, num_requests: int, concurrency: int) -> list[dict[str, Any]]:
        """Blend the trace's first requests from an empty store on; a row for each window of them."""
        traffic, prompts = ClosedLoop(concurrency), self._prompts.first(num_requests)
        measured = await self._measure("curve", traffic, prompts, Mode.fresh("blend"))
        rows = []
        for first in range(0, num_requests, WINDOW):
            numbers = range(first, min(first + WINDOW, num_requests))
            answers = [measured.answers[number] for number in numbers if number in measured.answers]
            rows.append(
                {
                    "window": first // WINDOW,
                    "hit_rate": hit_rate(answers),
                    "ttft_ms_p50": percentile([answer.ttft_ms for answer in answers], 50),
                }
            )
        return rows

    async def _measure(
        self,
        name: str,
        traffic: Traffic,
        prompts: Sequence[Prompt],
        mode: Mode,
        *,
        max_tokens: int | None = None,
        times: int = 1,
        bystander_texts: Sequence[str] = (),
    ) -> Measured:
        """Ask prompts, each `times` times in a row. Raises KVBlendError where none is answered."""
        measured = Measured(name)
        with Progress(console=self._console) as progress:
            task = progress.add_task(name, total=len(prompts) * times)

            async def send(numbered: tuple[int, Prompt]) -> None:
                number, prompt = numbered
                for time_number in range(times):
                    with measured.request():
                        measured.answers[number * times + time_number] = await ask(
                            self._client,
                            prompt,
                            mode=mode.reuse,
                            max_tokens=max_tokens or self._answer_tokens,
                            cache_salt=mode.cache_salt,
                        )
                    progress.advance(task)

            async with bystanders(self._client, bystander_texts, measured):
                began = time.perf_counter()
                await traffic.run(send, list(enumerate(prompts)))
                measured.seconds = time.perf_counter() - began
        self._failures += measured.failures
        measured.require_answers()
        return measured


def _described(traffic: Traffic) -> str:
    return f"{traffic.rate:g} a second" if traffic.concurrency is None else f"{traffic.concurrency} clients"
