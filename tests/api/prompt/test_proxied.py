"""What the service sends where KV leaves the engine: to a prefill node's proxy, and to an engine with KV events."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

from kvblend.api.prompt.sent_messages import sent_messages
from kvblend.core.plan import KVBlendParams
from kvblend.core.plan_salt import has_plan_salt, plan_salt
from kvblend.sdk import Client
from tests.api.scripted_engine import order_in
from tests.api.scripted_service import INFO, ScriptedService, scripted_service

TEXT = " ".join(f"On day {day} the lamp of Vik burns oil of seal number {day * 37 % 101}." for day in range(60))
QUESTION = "What does the lamp burn?"


@contextmanager
def fronted(folder: Path, model: Path, embedding_model: Path, **facts: bool) -> Iterator[ScriptedService]:
    info = INFO.model_copy(update=facts)
    with scripted_service(folder, model=model, embedding_model=embedding_model, info=info) as service:
        yield service


@pytest.fixture(scope="module")
def proxied(
    demo_model_path: Path, embedding_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ScriptedService]:
    folder = tmp_path_factory.mktemp("proxied")
    with fronted(folder, demo_model_path, embedding_model_path, salted=True, proxied=True) as service:
        with Client(service.url) as client:
            client.create_collection("lamps", passage_tokens=128)
            client.wait(client.add_document("lamps", TEXT, id="lamp"), timeout_s=60)
        yield service


def ask(service: ScriptedService, path: str, body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The answer, and the body that vLLM got for it."""
    answer = httpx.post(f"{service.url}{path}", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    sent = [each for each in service.engine.bodies if "encode" not in order_in(each)]
    return answer.json(), sent[-1]


@pytest.mark.parametrize("own", [None, "mine"])
def test_nothing_of_a_completion_is_where_a_proxy_replaces_it(proxied: ScriptedService, own: str | None) -> None:
    body = {"prompt": QUESTION, "kvblend": {"documents": [TEXT[:400]]}, "vllm_xargs": {"session": "s"}}
    _, sent = ask(proxied, "/v1/completions", {**body, **({"cache_salt": own} if own else {})})
    order = KVBlendParams.model_validate(order_in(sent))
    assert order.blend is not None and "kv_transfer_params" not in sent and sent["vllm_xargs"]["session"] == "s"
    question_ids = sent["prompt"][order.blend.num_tokens :]
    assert sent["cache_salt"] == plan_salt(order.blend, question_ids, own=own)


def test_questions_over_one_context_are_one_session_to_a_router(proxied: ScriptedService) -> None:
    def session(question: str, document: str, reuse: str = "blend") -> str | None:
        proxied.engine.headers.clear()
        ask(proxied, "/v1/completions", {"prompt": question, "kvblend": {"documents": [document], "reuse": reuse}})
        told = {headers["x-session-id"] for headers in proxied.engine.headers if "x-session-id" in headers}
        assert len(told) < 2
        return next(iter(told), None)

    first, second = (session(question, TEXT[:300]) for question in (QUESTION, "Who lights it?"))
    assert first == second and first is not None and len(first) == 64
    assert session(QUESTION, TEXT[:200]) not in (first, None)
    assert session(QUESTION, TEXT[:300], "none") is None, "it has no plan"


def test_an_encode_goes_the_same_way(proxied: ScriptedService) -> None:
    encodes = [body for body in proxied.engine.bodies if "encode" in order_in(body)]
    assert encodes and all("kv_transfer_params" not in body and "kvblend" in body["vllm_xargs"] for body in encodes)


def test_a_chats_passages_are_in_its_messages(proxied: ScriptedService, demo_model_path: Path) -> None:
    """Those that are ingested are found there again."""
    chat = {"messages": [{"role": "user", "content": QUESTION}]}
    answer, sent = ask(proxied, "/v1/chat/completions", {**chat, "kvblend": {"collection": "lamps", "top_k": 2}})
    texts = [source["text"] for source in answer["kvblend"]["sources"]]
    (part,) = sent["messages"][-1]["content"]
    assert len(texts) == 2 and all(text in part["text"] for text in texts)
    assert part["text"].endswith(f"Question: {QUESTION}")
    order = KVBlendParams.model_validate(order_in(sent))
    assert answer["kvblend"]["report"]["outcome"] == "blended" and "kv_transfer_params" not in sent
    assert order.blend is not None and sum(span.kind == "passage" for span in order.blend.spans) == 2
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path)
    read = sent_messages(sent["messages"])
    prompt = tokenizer.apply_chat_template(read, add_generation_prompt=True, tokenize=True)
    prompt_ids = list(prompt["input_ids"])
    assert has_plan_salt(sent["cache_salt"], order.blend, prompt_ids[order.blend.num_tokens :])


def test_a_chats_passages_that_nobody_ingested_are_prefilled(proxied: ScriptedService) -> None:
    chat = {"messages": [{"role": "user", "content": QUESTION}], "kvblend": {"documents": ["No lamp burns."]}}
    answer, sent = ask(proxied, "/v1/chat/completions", chat)
    assert "No lamp burns." in sent["messages"][-1]["content"][0]["text"] and not order_in(sent)
    report = answer["kvblend"]["report"]
    assert report["outcome"] == "prefilled" and report["reason"] == "vLLM is told a chat by its messages alone"


def test_an_engine_with_kv_events_gets_the_plans_salt_too(
    demo_model_path: Path, embedding_model_path: Path, tmp_path: Path
) -> None:
    chat = {"messages": [{"role": "user", "content": QUESTION}], "kvblend": {"documents": ["No lamp burns."]}}
    for facts, salted in ({"salted": True}, True), ({}, False):
        folder = tmp_path / str(salted)
        folder.mkdir()
        with fronted(folder, demo_model_path, embedding_model_path, **facts) as service:
            _, sent = ask(service, "/v1/chat/completions", chat)
        params = sent["kv_transfer_params"]
        order = KVBlendParams.model_validate(params["kvblend"])
        assert order.blend is not None and ("cache_salt" in sent) == salted
        question_ids = params["prompt_token_ids"][order.blend.num_tokens :]
        assert has_plan_salt(sent.get("cache_salt"), order.blend, question_ids) == salted
