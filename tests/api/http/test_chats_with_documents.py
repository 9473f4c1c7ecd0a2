"""A chat with documents is vLLM's chat with another prompt: its tokens are ours, everything else is the client's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

from kvblend.api.prompt.builder import DEFAULT_PREAMBLE
from tests.api.front import linked_model
from tests.api.scripted_service import ScriptedService, scripted_service

TOOLS = [{"type": "function", "function": {"name": "lookup", "parameters": {"type": "object"}}}]
WITH_TOOLS = (
    "{% for t in tools or [] %}<tool>{{ t['function']['name'] }}</tool>{% endfor %}"
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</{{ m['role'] }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant effort={{ reasoning_effort }} think={{ enable_thinking }}>{% endif %}"
)
DOCUMENTS = ["The bridge of Vik is closed.", "The ferry of Vik runs."]
CHAT: dict[str, Any] = {
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which way?"}],
    "max_tokens": 3,
    "kvblend": {"documents": DOCUMENTS},
}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
CAPTIONED = {**PICTURE, "text": "vLLM leaves this out."}


@pytest.fixture(scope="module")
def tokenizer(demo_model_path: Path) -> Any:
    return AutoTokenizer.from_pretrained(demo_model_path)


@pytest.fixture
def rendering(scripted: ScriptedService, tokenizer: Any) -> Iterator[ScriptedService]:
    """Its engine renders conversations, on a template that the service does not know."""

    def render(body: dict[str, Any]) -> list[int]:
        options = {name: body[name] for name in ("tools", "add_generation_prompt") if name in body}
        text = tokenizer.apply_chat_template(
            body["messages"],
            tokenize=False,
            chat_template=WITH_TOOLS,
            **{"add_generation_prompt": True, **options, **body.get("chat_template_kwargs", {})},
        )
        token_ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return token_ids

    scripted.engine.render = render
    yield scripted
    scripted.engine.render = None


def ask(service: ScriptedService, **fields: Any) -> dict[str, Any]:
    """The service's answer; what the engine got is in `sent_by`."""
    answer = httpx.post(f"{service.url}/v1/chat/completions", json={**CHAT, **fields}, timeout=60)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def sent_by(service: ScriptedService) -> dict[str, Any]:
    """The newest chat that the engine got; encodes come beside them."""
    return [body for body in service.engine.bodies if "messages" in body][-1]


def prompt_of(service: ScriptedService, tokenizer: Any) -> str:
    text: str = tokenizer.decode(sent_by(service)["kv_transfer_params"]["prompt_token_ids"])
    return text


def test_the_prompt_is_as_vllm_renders_it_with_the_passages_in_it(rendering: ScriptedService, tokenizer: Any) -> None:
    ask(rendering, tools=TOOLS, tool_choice="auto", reasoning_effort="low")
    passages = "".join(f"{text}\n\n" for text in DOCUMENTS)
    assert prompt_of(rendering, tokenizer) == (
        "<tool>lookup</tool><system>Be brief.</system>"
        f"<user>Passages:\n\n{passages}Question: Which way?</user><assistant effort=low think=True>"
    )
    plan = sent_by(rendering)["kv_transfer_params"]["kvblend"]["blend"]
    assert [span["kind"] for span in plan["spans"]] == ["exact", "passage", "passage"]


def test_the_clients_fields_reach_vllm_as_they_are(rendering: ScriptedService) -> None:
    fields = {
        "tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "lookup"}}, "n": 2, "logprobs": True,
        "top_logprobs": 4, "stop": ["x"], "response_format": {"type": "json_object"}, "reasoning_effort": "high",
        "parallel_tool_calls": False, "structured_outputs": {"choice": ["a"]}, "priority": 3,
        "max_completion_tokens": 9, "include_reasoning": False, "some_day": 1,
    }  # fmt: skip
    ask(rendering, **fields)
    sent = sent_by(rendering)
    assert {name: sent[name] for name in fields} == fields
    assert sent["messages"] == CHAT["messages"] and "stream" not in sent and "kvblend" not in sent


def test_a_conversation_keeps_its_tool_calls(rendering: ScriptedService, tokenizer: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "lookup", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Which way?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "South."},
    ]
    ask(rendering, messages=messages, tools=TOOLS)
    asked = rendering.engine.rendered[-1]["messages"]
    assert [message["role"] for message in asked] == ["system", "user", "assistant", "tool"]
    assert asked[2]["tool_calls"] == [call] and asked[3]["tool_call_id"] == "1"
    assert prompt_of(rendering, tokenizer).startswith("<tool>lookup</tool><system>"), (
        "not the collection's own preamble"
    )
    assert sent_by(rendering)["messages"] == messages


@pytest.mark.parametrize("fields", [{}, {"tools": TOOLS}])
def test_a_server_that_does_not_render_leaves_it_to_the_models_template(
    scripted: ScriptedService, tokenizer: Any, fields: dict[str, Any]
) -> None:
    ask(scripted, **fields)
    passages = "".join(f"{text}\n\n" for text in DOCUMENTS)
    messages = [CHAT["messages"][0], {"role": "user", "content": f"Passages:\n\n{passages}Question: Which way?"}]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt_of(scripted, tokenizer) == expected


@pytest.mark.parametrize("name", ["chat_template", "conversation", "tokenize"])
@pytest.mark.parametrize("renders", [False, True])
def test_no_variable_of_the_template_takes_the_place_of_the_template(
    scripted: ScriptedService, rendering: ScriptedService, name: str, renders: bool
) -> None:
    rendering.engine.render = rendering.engine.render if renders else None
    body = {**CHAT, "chat_template_kwargs": {name: "{{ 1 / 0 }}"}}
    answer = httpx.post(f"{scripted.url}/v1/chat/completions", json=body, timeout=60)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, f"chat_template_kwargs.{name}")


@pytest.mark.parametrize("odd", [False, True], ids=["that does not render", "whose tokens are not those of their text"])
def test_a_clients_template_is_never_rendered_here(scripted: ScriptedService, tokenizer: Any, odd: bool) -> None:
    """A server that does not give its tokens gets the passages as text, and the template with them."""
    scripted.engine.render = (lambda body: [tokenizer.convert_tokens_to_ids(each) for each in "Pass"]) if odd else None
    template = "{{ 1 / 0 }}"
    report = ask(scripted, chat_template=template)["kvblend"]["report"]
    scripted.engine.render = None
    assert (report["outcome"], report["reason"]) == ("prefilled", "vLLM does not render the messages to tokens")
    assert sent_by(scripted)["chat_template"] == template
    assert DOCUMENTS[1] in sent_by(scripted)["messages"][1]["content"][0]["text"]


def test_what_is_not_the_tokens_of_its_text_is_not_taken(rendering: ScriptedService, tokenizer: Any) -> None:
    """Negative control: without the odd tokens in front, vLLM's rendering is."""
    render = rendering.engine.render
    assert render is not None
    odd = [tokenizer.convert_tokens_to_ids(letter) for letter in ("P", "a", "s", "s")]
    rendering.engine.render = lambda body: [*odd, *render(body)]
    ask(rendering)
    assert "<user>" not in prompt_of(rendering, tokenizer)
    rendering.engine.render = render
    ask(rendering)
    assert "<user>" in prompt_of(rendering, tokenizer)


def test_what_vllm_does_not_render_it_judges_itself(rendering: ScriptedService) -> None:
    """Whether it refuses the request, it says to the request; where it takes it, it prefills the passages' text."""
    render = rendering.engine.render

    def refuse(body: dict[str, Any]) -> list[int]:
        raise ValueError("no such tool")

    rendering.engine.render = refuse
    report = ask(rendering)["kvblend"]["report"]
    rendering.engine.render = render
    assert (report["outcome"], report["reason"]) == ("prefilled", "vLLM does not render the messages to tokens")
    assert [len(each["messages"]) for each in rendering.engine.rendered[-2:]] == [2, 1], "without a system message too"
    assert DOCUMENTS[1] in sent_by(rendering)["messages"][1]["content"][0]["text"]


def test_an_answer_is_vllms_and_has_the_report(scripted: ScriptedService) -> None:
    answer = ask(scripted)
    assert answer["kvblend"]["report"]["outcome"] == "blended"
    assert answer["kvblend"]["report"]["ttft_ms"] == 7.0, "vLLM's own, queueing included"
    assert [source["text"] for source in answer.pop("kvblend")["sources"]] == DOCUMENTS
    theirs = httpx.post(f"{scripted.engine.url}/v1/chat/completions", json={"messages": CHAT["messages"]}).json()
    assert answer == theirs


@pytest.mark.parametrize("options", [None, {"include_usage": True}, {"continuous_usage_stats": True}])
def test_streamed_chunks_are_vllms_and_the_last_has_the_report(
    scripted: ScriptedService, options: dict[str, Any] | None
) -> None:
    body = {**CHAT, "stream": True, "stream_options": options}
    lines = httpx.post(f"{scripted.url}/v1/chat/completions", json=body, timeout=60).text.splitlines()
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert events[-1] == "[DONE]" and all("kvblend" not in each for each in events[:-2])
    assert '"outcome":"blended"' in events[-2]
    wants_usage = bool((options or {}).get("include_usage"))
    assert ('"usage"' in events[-2]) == wants_usage and len(events) == 3 + wants_usage + 1
    assert sent_by(scripted)["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("part", [PICTURE, CAPTIONED, "What is this?"])
def test_pictures_stand_beside_the_passages_text(scripted: ScriptedService, part: Any) -> None:
    content = [part, {"type": "text", "text": "What is this?"}]
    answer = ask(scripted, messages=[{"role": "user", "content": "Hello."}, {"role": "user", "content": content}])
    report = answer["kvblend"]["report"]
    assert (report["outcome"], report["reason"]) == ("prefilled", "the messages hold more than text")
    assert report["context_tokens"] == report["recomputed_tokens"] > 0
    sent = sent_by(scripted)
    assert "kv_transfer_params" not in sent
    assert [message["role"] for message in sent["messages"]] == ["system", "user", "user"]
    passages = "".join(f"{text}\n\n" for text in DOCUMENTS)
    assert sent["messages"][2]["content"] == [{"type": "text", "text": f"Passages:\n\n{passages}Question: "}, *content]


@pytest.mark.parametrize("has_own_template", [False, True])
def test_a_template_without_system_messages_has_the_preamble_beside_a_picture_too(
    demo_model_path: Path, embedding_model_path: Path, tmp_path: Path, has_own_template: bool
) -> None:
    """As such a chat's blended prompt has it; what a template of the client's own takes is vLLM's to say."""
    model = linked_model(demo_model_path, tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ raise_exception('no') if m['role'] == 'system' else m['content'] }}{% endfor %}"
    )
    earlier = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello!"}]
    content = [{"type": "text", "text": "What is this?"}, PICTURE]
    own = {"chat_template": "{{ messages[0]['content'] }}"} if has_own_template else {}
    with scripted_service(tmp_path / "home", model=model, embedding_model=embedding_model_path) as service:
        ask(service, messages=[*earlier, {"role": "user", "content": content}], **own)
        sent = sent_by(service)["messages"]
    if has_own_template:
        assert sent[0] == {"role": "system", "content": DEFAULT_PREAMBLE} and sent[1:3] == earlier
    else:
        assert [message["role"] for message in sent] == ["user", "assistant", "user"]
        assert sent[0]["content"] == [{"type": "text", "text": f"{DEFAULT_PREAMBLE}\n\nHello."}]
    assert sent[-1]["content"][0]["text"].startswith("Passages:")


def test_passages_are_in_the_questions_own_text(scripted: ScriptedService) -> None:
    """Of two parts of text vLLM makes two lines, and a blended prompt has one."""
    content = [{"type": "text", "text": "What is this?"}, PICTURE]
    ask(scripted, messages=[{"role": "user", "content": content}])
    passages = "".join(f"{text}\n\n" for text in DOCUMENTS)
    told = {"type": "text", "text": f"Passages:\n\n{passages}Question: What is this?"}
    assert sent_by(scripted)["messages"][1]["content"] == [told, PICTURE]


@pytest.mark.parametrize("field", ["echo", "truncate_prompt_tokens"])
def test_what_would_part_the_prompt_from_its_plan_is_refused(scripted: ScriptedService, field: str) -> None:
    answer = httpx.post(f"{scripted.url}/v1/chat/completions", json={**CHAT, field: 5}, timeout=60)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
