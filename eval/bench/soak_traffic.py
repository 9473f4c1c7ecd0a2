"""Mixed traffic without end: documents come, change and go; questions are asked, some by clients that leave midway."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from kvblend.eval.bench.load_texts import PassageTexts

__all__ = ["SoakTraffic"]

COLLECTION = "kvblend-soak"
NUM_DOCUMENTS = 24
"""Of which each is replaced again and again: after a while as much is stored as is deleted."""
EDITIONS = 4
PAUSE_S = 0.2
MAX_TOKENS = 24


class SoakTraffic:
    """Counts what was asked, and what failed, by kind. A context manager: the collection is its own."""

    def __init__(self, http: httpx.AsyncClient, *, seed: int = 0) -> None:
        self.num_done: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self._http, self._chance = http, random.Random(seed)
        self._texts = PassageTexts(dict.fromkeys(range(NUM_DOCUMENTS), 600), scale=1.0, chars_per_token=4.0)
        self._url = f"/v1/collections/{COLLECTION}"

    async def __aenter__(self) -> "SoakTraffic":
        await self._http.delete(self._url)
        (await self._http.post("/v1/collections", json={"name": COLLECTION})).raise_for_status()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.delete(self._url)

    async def run(self) -> None:
        """Until it is cancelled."""
        kinds: list[tuple[str, Callable[[], Awaitable[None]], float]] = [
            ("ingest", self._ingest, 4.0),
            ("delete", self._delete, 16.0),
            ("query", self._query, 1.0),
            ("chat", self._chat, 2.0),
            ("cut off", self._cut_off, 3.0),
        ]
        async with asyncio.TaskGroup() as tasks:
            for name, work, pause_s in kinds:
                tasks.create_task(self._repeat(name, work, pause_s))

    async def _repeat(self, name: str, work: Callable[[], Awaitable[None]], pause_s: float) -> None:
        while True:
            try:
                await work()
                self.num_done[name] += 1
            except httpx.HTTPError as error:
                self.failures[f"{name}: {type(error).__name__} {error}".splitlines()[0]] += 1
            await asyncio.sleep(pause_s * (0.5 + self._chance.random()))

    async def _ingest(self) -> None:
        number = self._chance.randrange(NUM_DOCUMENTS)
        text = self._texts.text(number, edition=self._chance.randrange(EDITIONS))
        body = {"id": f"d{number}", "text": text, "media_type": "text/markdown"}
        job = (await self._http.post(f"{self._url}/documents", json=body)).raise_for_status().json()
        while job["status"] not in ("succeeded", "failed"):
            await asyncio.sleep(PAUSE_S)
            job = (await self._http.get(f"{self._url}/jobs/{job['id']}")).raise_for_status().json()

    async def _delete(self) -> None:
        answer = await self._http.delete(f"{self._url}/documents/d{self._chance.randrange(NUM_DOCUMENTS)}")
        if answer.status_code != 404:
            answer.raise_for_status()

    async def _query(self) -> None:
        (await self._http.post(f"{self._url}/query", json=self._question())).raise_for_status()

    async def _chat(self) -> None:
        body = {
            "messages": [{"role": "user", "content": self._question()["question"]}],
            "max_tokens": MAX_TOKENS,
            "kvblend": {"collection": COLLECTION},
        }
        (await self._http.post("/v1/chat/completions", json=body)).raise_for_status()

    async def _cut_off(self) -> None:
        body = {**self._question(), "stream": True, "max_tokens": 512}
        async with self._http.stream("POST", f"{self._url}/query", json=body) as answer:
            answer.raise_for_status()
            lines = answer.aiter_lines()
            async for line in lines:
                if line.startswith("event: delta"):
                    break

    def _question(self) -> dict[str, Any]:
        question = f"What does passage {self._chance.randrange(NUM_DOCUMENTS)} say? ({self._chance.random()})"
        return {"question": question, "top_k": self._chance.randrange(1, 6), "max_tokens": MAX_TOKENS}
