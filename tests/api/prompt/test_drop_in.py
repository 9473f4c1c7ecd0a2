"""Plain OpenAI requests whose prompts hold ingested passages: what vLLM is sent, and what the client gets."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

from kvblend.core.identity import token_hash
from kvblend.retriever import Catalog
from kvblend.sdk import Client
from tests.api.scripted_service import ScriptedService, scripted_service

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TEXT = " ".join(f"On day {day} the lamp of Vik burns oil of seal number {day * 37 % 101}." for day in range(60))
STUFF = "Use the following pieces of context to answer the user's question.\n----------------\n{}"
QUESTION = "What does the lamp burn?"


@contextmanager
def lamps(folder: Path, model: Path, embedding_model: Path, **settings: Any) -> Iterator[ScriptedService]:
    with scripted_service(folder, model=model, embedding_model=embedding_model, **settings) as service:
        with Client(service.url) as client:
            client.create_collection("lamps", passage_tokens=128)
            client.wait(client.add_document("lamps", TEXT, id="lamp", metadata={"shelf": 3}), timeout_s=60)
        yield service


@pytest.fixture(scope="module")
def service(
    demo_model_path: Path, embedding_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ScriptedService]:
    with lamps(tmp_path_factory.mktemp("drop_in"), demo_model_path, embedding_model_path) as service:
        yield service


@pytest.fixture(scope="module")
def tokenizer(demo_model_path: Path) -> Any:
    return AutoTokenizer.from_pretrained(demo_model_path)


@pytest.fixture(scope="module")
def passages(service: ScriptedService) -> list[str]:
    """Texts of the document's passages."""
    catalog = Catalog(service.home / "collections" / "catalog.sqlite3")
    texts = [passage.text for passage in catalog.document_passages("lamps", "lamp")]
    catalog.close()
    assert len(texts) > 8
    return texts


def ask(service: ScriptedService, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = httpx.post(f"{service.url}{path}", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def sent(service: ScriptedService) -> dict[str, Any]:
    """What the engine got last that was no encode of ours, which follow an answer."""
    return next(
        body
        for body in reversed(service.engine.bodies)
        if "encode" not in body.get("kv_transfer_params", {}).get("kvblend", {})
    )


def plan(service: ScriptedService) -> list[dict[str, Any]]:
    spans: list[dict[str, Any]] = sent(service)["kv_transfer_params"]["kvblend"]["blend"]["spans"]
    return spans


def reused_texts(service: ScriptedService, token_ids: list[int], tokenizer: Any, passages: list[str]) -> list[str]:
    """Lay the plan over the prompt as the connector does: the texts of the passages that its spans name."""
    ids = {token_hash(tokenizer(text + "\n\n", add_special_tokens=False).input_ids): text for text in passages}
    start, found, num_reused, num_passages = 0, list[str](), 0, 0
    for place, span in enumerate(plan(service)):
        assert (span["kind"] == "exact") == (place == 0), "what is in front of all is what it is anywhere"
        tokens = token_ids[start : start + span["num_tokens"]]
        start += span["num_tokens"]
        if span["kind"] == "passage":
            cut = span.get("cut", {"before": [], "after": []})
            found.append(ids[token_hash([*cut["before"], *tokens, *cut["after"]])])
            num_reused += len(tokens)
            num_passages += len(tokens) + len(cut["before"]) + len(cut["after"])
    assert start < len(token_ids)
    assert num_reused >= 0.95 * num_passages
    return found


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("role", ["system", "user"])
def test_a_stuff_prompt(service: ScriptedService, tokenizer: Any, passages: list[str], role: str, stream: bool) -> None:
    """LangChain's: retrieved texts in any order, joined into a message. The request itself reaches vLLM as it is."""
    held = [passages[5], passages[1], passages[6], passages[1]]
    stuffed, question = STUFF.format("\n\n".join(held)), {"role": "user", "content": QUESTION}
    messages: list[dict[str, Any]] = [{"role": "system", "content": stuffed}, question]
    if role == "user":
        messages = [{"role": "user", "content": [{"type": "text", "text": f"{stuffed}\n\nQuestion: {QUESTION}"}]}]
    body = {"messages": messages, "stream": stream, "temperature": 0.5, "user": "me", "n": 1}
    if stream:
        answer = httpx.post(f"{service.url}{CHAT}", json=body, timeout=60)
        lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
        assert lines[-1] == "[DONE]"
        chunks = [json.loads(line) for line in lines[:-1]]
        assert [chunk["choices"][0]["delta"] for chunk in chunks] == [{"content": "x"}] * 3
        added = chunks[-1]["kvblend"]
    else:
        whole = ask(service, CHAT, body)
        assert whole["choices"][0]["message"]["content"] == "xxx" and "kv_transfer_params" not in whole
        added = whole["kvblend"]
    assert added["report"]["outcome"] == "blended"
    assert [source["text"] for source in added["sources"]] == held
    assert {(source["document_id"], source["metadata"]["shelf"]) for source in added["sources"]} == {("lamp", 3)}
    reached = sent(service)
    assert {name: reached[name] for name in ("messages", "temperature", "user")} == {
        "messages": messages, "temperature": 0.5, "user": "me",
    }  # fmt: skip
    assert "max_tokens" not in reached and "prompt" not in reached
    plain = [
        {**each, "content": each["content"] if role == "system" else each["content"][0]["text"]} for each in messages
    ]
    token_ids = tokenizer.apply_chat_template(plain, add_generation_prompt=True, return_dict=False)
    assert reused_texts(service, token_ids, tokenizer, passages) == held


@pytest.mark.parametrize("as_tokens", [False, True])
def test_a_completion_that_begins_and_ends_with_passages(
    service: ScriptedService, tokenizer: Any, passages: list[str], as_tokens: bool
) -> None:
    """Of the last passage a token is left, to be asked."""
    text = f"Read.{passages[3]} {passages[2].upper()}\n\n{passages[7]}"
    token_ids = tokenizer(text).input_ids
    added = ask(service, COMPLETIONS, {"prompt": token_ids if as_tokens else text, "max_tokens": 2})["kvblend"]
    assert [source["text"] for source in added["sources"]] == [passages[3], passages[7]]
    assert sent(service)["prompt"] == (token_ids if as_tokens else text) and sent(service)["max_tokens"] == 2
    assert reused_texts(service, token_ids, tokenizer, passages) == [passages[3], passages[7]]
    assert [span["kind"] for span in plan(service)] == ["exact", "passage", "fresh", "passage"]


def test_part_of_a_passage_in_what_a_tool_said(service: ScriptedService, tokenizer: Any, passages: list[str]) -> None:
    """An agent's conversation, with tools, in the model's own template."""
    half = passages[4][: len(passages[4]) // 2]
    call = {"id": "1", "type": "function", "function": {"name": "search", "arguments": '{"q": "lamp"}'}}
    messages = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": half},
    ]
    tools = [{"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {}}}}]
    answer = ask(service, CHAT, {"messages": messages, "tools": tools})
    (source,) = answer["kvblend"]["sources"]
    assert source["text"] == passages[4] and sent(service)["tools"] == tools
    (span,) = [span for span in plan(service) if span["kind"] == "passage"]
    own = tokenizer(passages[4] + "\n\n", add_special_tokens=False).input_ids
    assert len(span["cut"]["before"]) <= 1 and len(span["cut"]["after"]) >= len(own) // 3
    assert span["num_tokens"] + len(span["cut"]["before"]) + len(span["cut"]["after"]) == len(own)


def test_what_a_request_says_holds(service: ScriptedService, passages: list[str]) -> None:
    """A ratio is that of the plan; a request that wants no reuse, or that holds nothing of ours, gets no plan."""
    body = {"prompt": f"Read.\n\n{passages[0]}\n\n{QUESTION}"}
    ask(service, COMPLETIONS, {**body, "kvblend": {"recompute_ratio": 1.0}})
    assert {ratio for span in plan(service) for ratio in span.get("recompute_ratios", ())} == {1.0}
    for plain in (
        {**body, "kvblend": {"reuse": "prefix_cache"}},
        {"prompt": QUESTION},
        {"prompt": [body["prompt"], QUESTION]},
    ):
        added = ask(service, COMPLETIONS, plain).get("kvblend")  # without a field of ours the answer is vLLM's own
        assert (added is None) == ("kvblend" not in plain)
        assert added is None or (added["report"]["outcome"], added["sources"]) == ("prefilled", [])
        assert "kv_transfer_params" not in sent(service)


ECHO = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    "fields",
    [
        {"chat_template": ECHO},
        {"chat_template_kwargs": {"chat_template": ECHO}},
        {"chat_template_kwargs": {"chat_template": "{{ 1 / 0 }}"}},
        {"chat_template_kwargs": {"tokenize": True}},
        {"chat_template_kwargs": {"conversation": []}},
    ],
)
def test_a_clients_template_is_vllms_alone(
    service: ScriptedService, passages: list[str], fields: dict[str, Any]
) -> None:
    """Nothing of a client's runs here, so that no passage is found in what it would make."""
    body = {"messages": [{"role": "user", "content": f"{passages[2]}\n\n{QUESTION}"}]}
    assert "kvblend" not in ask(service, CHAT, {**body, **fields})
    assert sent(service) == {**body, **fields}
    assert "kvblend" in ask(service, CHAT, {**body, "chat_template_kwargs": {"tone": "dry"}}), "the negative control"


def test_a_deleted_document_is_found_no_more(service: ScriptedService) -> None:
    text = " ".join(f"Room {number} of the tower has {number * 7} stairs." for number in range(20))
    with Client(service.url) as client:
        client.create_collection("towers", passage_tokens=256)
        client.wait(client.add_document("towers", text, id="tower"), timeout_s=60)
        added = ask(service, COMPLETIONS, {"prompt": f"{text}\n\n?"})["kvblend"]
        assert {source["document_id"] for source in added["sources"]} == {"tower"}
        client.delete_document("towers", "tower")
    assert "kvblend" not in ask(service, COMPLETIONS, {"prompt": f"{text}\n\n?"})
    assert "kv_transfer_params" not in sent(service)


def test_switched_off(demo_model_path: Path, embedding_model_path: Path, tmp_path: Path, passages: list[str]) -> None:
    with lamps(tmp_path, demo_model_path, embedding_model_path, drop_in=False) as service:
        assert "kvblend" not in ask(service, COMPLETIONS, {"prompt": f"{passages[0]}\n\n{QUESTION}"})
        assert "kv_transfer_params" not in sent(service)
