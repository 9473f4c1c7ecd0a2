"""A prompt of megabytes costs its own request time, and no other."""

import asyncio
from typing import Any

import httpx
import pytest

from tests.api.scripted_service import ScriptedService

TEXT = "The bridge of Vik is closed in winter. " * 100_000


@pytest.mark.parametrize("documents", [["A passage."], [TEXT]])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_nobody_waits_for_its_tokens(scripted: ScriptedService, path: str, documents: list[str]) -> None:
    question = TEXT if documents != [TEXT] else "?"
    body: dict[str, Any] = {"kvblend": {"documents": documents}}
    if path == "/v1/completions":
        body["prompt"] = question
    else:
        body["messages"] = [{"role": "user", "content": question}]
    async with httpx.AsyncClient(base_url=scripted.url, timeout=120) as client:
        long = [asyncio.create_task(client.post(path, json=body)) for _ in range(2)]
        num_answered = 0
        while not all(each.done() for each in long):
            assert (await client.get("/healthz")).status_code == 200
            num_answered += 1
        for each in long:
            assert each.result().status_code == 400 and "more than the model's" in each.result().text
    assert num_answered > 20, "others are answered in between"
