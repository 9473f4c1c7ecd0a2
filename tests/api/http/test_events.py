"""Streams as they lie on the wire: clients split them at the line ends that vLLM sends."""

import json
from typing import Any

import httpx
import pytest

from tests.api.scripted_service import ScriptedService

CHAT = {"messages": [{"role": "user", "content": "?"}], "max_tokens": 3}
DOCUMENTS = {"kvblend": {"documents": ["The bridge of Vik is of basalt."]}}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", CHAT),
    "blended chat": ("/v1/chat/completions", {**CHAT, **DOCUMENTS}),
    "blended completion": ("/v1/completions", {"prompt": "Once", "max_tokens": 3, **DOCUMENTS}),
    "query": ("/v1/collections/c/query", {"question": "?", "max_tokens": 3}),
}


@pytest.fixture(scope="module", autouse=True)
def collection(scripted: ScriptedService) -> None:
    httpx.post(f"{scripted.url}/v1/collections", json={"name": "c"}, timeout=60).raise_for_status()


@pytest.mark.parametrize("request_name", REQUESTS)
def test_an_event_ends_with_an_empty_line_as_vllm_writes_it(scripted: ScriptedService, request_name: str) -> None:
    """`vllm bench serve` splits at no other line end, and loses an answer whose parts came together."""
    path, body = REQUESTS[request_name]
    answer = httpx.post(f"{scripted.url}{path}", json={**body, "stream": True}, timeout=60)
    assert answer.status_code == 200 and "\r" not in answer.text and answer.text.endswith("\n\n")
    events = answer.text.removesuffix("\n\n").split("\n\n")
    data = [event.splitlines()[-1].removeprefix("data: ") for event in events]
    assert len(data) > 3 and all(json.loads(each) for each in data if each != "[DONE]")
    assert (data[-1] == "[DONE]") == (request_name != "query")
