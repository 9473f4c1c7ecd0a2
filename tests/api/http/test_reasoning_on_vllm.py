"""A vLLM server that parts reasoning from the answer does so for a chat with documents, too."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service import RunningService, running_service

pytestmark = pytest.mark.extended

DOCUMENTS = ["The old bridge of Vik is closed in winter.", "The ferry of Vik runs all year, from the north pier."]
REASONING, ANSWER = " The passages name a ferry. ", " Take the ferry."
SAID = f"Here is my thought process:{REASONING}Here is my response:{ANSWER}".replace(".", r"\.")
"""By the words that the parser `granite` looks for: it needs no tokens of its own."""
CHAT: dict[str, Any] = {
    "messages": [{"role": "user", "content": "How do I cross in winter?"}],
    "structured_outputs": {"regex": SAID},
    "temperature": 0,
    "max_tokens": 80,
}


@pytest.fixture(scope="module")
def reasoning(
    demo_model_path: Path, embedding_model_path: Path, tmp_path_factory: pytest.TempPathFactory, dtype: str
) -> Iterator[RunningService]:
    home = tmp_path_factory.mktemp("home")
    options = ("--reasoning-parser", "granite", "--structured-outputs-config.enable_in_reasoning", "true")
    with running_service(demo_model_path, embedding_model_path, home=home, dtype=dtype, options=options) as service:
        yield service


def ask(url: str, **fields: Any) -> dict[str, Any]:
    answer = httpx.post(f"{url}/v1/chat/completions", json={**CHAT, **fields})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def streamed(url: str, **fields: Any) -> list[dict[str, Any]]:
    answer = httpx.post(f"{url}/v1/chat/completions", json={**CHAT, "stream": True, **fields})
    assert answer.status_code == 200, answer.text
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


def said(chunks: list[dict[str, Any]], field: str) -> str:
    """What the pieces of a stream make together; where a piece ends is the model's own choice of tokens."""
    return "".join(choice["delta"].get(field) or "" for chunk in chunks for choice in chunk["choices"])


@pytest.fixture(scope="module")
def blends(reasoning: RunningService) -> dict[str, Any]:
    """The field of a chat whose documents are encoded: the first use of each is a miss."""
    field = {"kvblend": {"documents": DOCUMENTS}}
    for _ in range(20):
        if not ask(reasoning.url, **field)["kvblend"]["report"]["missed_passages"]:
            return field
    raise AssertionError("the documents are not encoded")


@pytest.mark.parametrize("wanted", [True, False])
def test_an_answer_has_its_reasoning(reasoning: RunningService, blends: dict[str, Any], wanted: bool) -> None:
    """Reference: vLLM's own answer, to the question alone. Negative control: the reasoning is not wanted."""
    answer = ask(reasoning.url, include_reasoning=wanted, **blends)
    ours = answer["kvblend"]
    assert ours["report"]["outcome"] == "blended" and ours["report"]["reused_tokens"] > 0
    assert [source["text"] for source in ours["sources"]] == DOCUMENTS
    message = answer["choices"][0]["message"]
    assert (message.get("reasoning"), message["content"]) == (REASONING if wanted else None, ANSWER)
    assert answer["choices"] == ask(reasoning.engine_url, include_reasoning=wanted)["choices"]


@pytest.mark.parametrize("wanted", [True, False])
def test_a_stream_has_its_reasoning(reasoning: RunningService, blends: dict[str, Any], wanted: bool) -> None:
    """As above."""
    chunks = streamed(reasoning.url, include_reasoning=wanted, **blends)
    ours = chunks[-1]["kvblend"]
    assert ours["report"]["outcome"] == "blended" and ours["report"]["reused_tokens"] > 0
    assert [source["text"] for source in ours["sources"]] == DOCUMENTS
    assert all("kvblend" not in chunk for chunk in chunks[:-1])
    theirs = streamed(reasoning.engine_url, include_reasoning=wanted)
    for field, text in {"reasoning": REASONING if wanted else "", "content": ANSWER}.items():
        assert said(chunks, field) == said(theirs, field) == text
    assert chunks[-1]["choices"][0]["finish_reason"] == theirs[-1]["choices"][0]["finish_reason"] == "stop"
