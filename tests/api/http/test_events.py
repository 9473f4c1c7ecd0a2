"""Streams as they lie on the wire: clients split them at the line ends that vLLM sends."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.scripted_service import ScriptedService, scripted_service

CHAT = {"messages": [{"role": "user", "content": "?"}], "max_tokens": 3}
DOCUMENTS = {"kvblend": {"documents": ["The bridge of Vik is of basalt."]}}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", CHAT),
    "blended chat": ("/v1/chat/completions", {**CHAT, **DOCUMENTS}),
    "blended completion": ("/v1/completions", {"prompt": "Once", "max_tokens": 3, **DOCUMENTS}),
    "query": ("/v1/collections/c/query", {"question": "?", "max_tokens": 3}),
}


@pytest.fixture(scope="module")
def service(
    demo_model_path: Path, embedding_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ScriptedService]:
    folder = tmp_path_factory.mktemp("events")
    with scripted_service(folder, model=demo_model_path, embedding_model=embedding_model_path) as made:
        httpx.post(f"{made.url}/v1/collections", json={"name": "c"}, timeout=60)
        yield made


@pytest.mark.parametrize("request_name", REQUESTS)
def test_an_event_ends_with_an_empty_line_as_vllm_writes_it(service: ScriptedService, request_name: str) -> None:
    """`vllm bench serve` splits at no other line end, and loses an answer whose parts came together."""
    path, body = REQUESTS[request_name]
    answer = httpx.post(f"{service.url}{path}", json={**body, "stream": True}, timeout=60)
    assert answer.status_code == 200 and "\r" not in answer.text and answer.text.endswith("\n\n")
    events = answer.text.removesuffix("\n\n").split("\n\n")
    data = [event.splitlines()[-1].removeprefix("data: ") for event in events]
    assert len(data) > 3 and all(json.loads(each) for each in data if each != "[DONE]")
    assert (data[-1] == "[DONE]") == (request_name != "query")
