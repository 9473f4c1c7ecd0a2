"""OpenAI's own client against the service, with documents that the caller retrieved itself and without."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from kvblend.api.engine.answer_tokens import TOKEN_FIELDS, AnswerToken, answer_tokens
from kvblend.api.quality.truncated_kl import answer_kl
from kvblend.sdk import Client
from tests.service import RunningService
from tests.tolerances import Tolerances

DOCUMENTS = [
    "The old bridge of Halden was built by Ada Brenner in 1821. It has seven arches of red granite.",
    {
        "text": "The river Orm is 212 kilometres long and runs to the sea at Halden.",
        "id": "orm",
        "metadata": {"page": 3},
    },
]
QUESTION: Any = [{"role": "user", "content": "Who built the old bridge of Halden?"}]
BLEND = {"kvblend": {"documents": DOCUMENTS}}
LENGTH = "Question: How long is the river Orm?\nAnswer: The river Orm is"


@pytest.fixture(scope="module")
def client(service: RunningService) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def blended(ask: Callable[[], Any]) -> Any:
    """Ask until no document is missed, and once more: from then on the request is answered from the same numbers."""
    for _ in range(20):
        if not kvblend_of(ask())["report"]["missed_passages"]:
            return ask()
    raise AssertionError("the documents are not encoded")


@pytest.fixture(scope="module")
def model(client: OpenAI) -> str:
    """The name of the model that is served."""
    return client.models.list().data[0].id


def kvblend_of(answer: Any) -> Any:
    return answer.model_dump()["kvblend"]


def test_documents_are_blended_into_a_chat(client: OpenAI, model: str) -> None:
    """The first use of a document is a miss; its KV is made in the background, and the next use reuses it."""
    answer = blended(
        lambda: client.chat.completions.create(
            model=model, messages=QUESTION, max_tokens=24, temperature=0, extra_body=BLEND
        )
    )
    assert answer.usage is not None and answer.usage.completion_tokens <= 24
    report, sources = kvblend_of(answer)["report"], kvblend_of(answer)["sources"]
    assert report["outcome"] in ("blended", "prefix_hit")
    assert report["ttft_ms"] > 0
    assert [source["document_id"] for source in sources] == [None, "orm"]
    assert sources[1]["metadata"] == {"page": 3}


def test_an_answer_stands_on_its_documents(service: RunningService, tolerances: Tolerances) -> None:
    """Reference: full prefill. Ours: a blend with everything recomputed. Negative control: another document."""

    def first_token(river: str, outcome: str, **options: Any) -> list[AnswerToken]:
        documents = [DOCUMENTS[0], river]
        body = {"prompt": LENGTH, "max_tokens": 1, **TOKEN_FIELDS, "kvblend": {"documents": documents, **options}}
        answer = httpx.post(f"{service.url}/v1/completions", json=body, timeout=60).json()
        while outcome == "blended" and answer["kvblend"]["report"]["missed_passages"]:
            answer = httpx.post(f"{service.url}/v1/completions", json=body, timeout=60).json()
        assert answer["kvblend"]["report"]["outcome"] == outcome
        return list(answer_tokens(answer))

    long = "The river Orm is 212 kilometres long and runs to the sea at Halden."
    full = first_token(long, "prefilled", reuse="none")
    assert answer_kl(full, first_token(long, "blended", recompute_ratio=1.0)) < tolerances.demo
    other = first_token(long.replace("212", "97"), "prefilled", reuse="none")
    assert answer_kl(full, other) > tolerances.control * tolerances.demo


@pytest.mark.parametrize("include_usage", [True, False])
def test_a_streamed_chat_ends_with_the_report(client: OpenAI, model: str, include_usage: bool) -> None:
    options: Any = {"stream_options": {"include_usage": True}} if include_usage else {}
    request: Any = {"model": model, "messages": QUESTION, "max_tokens": 12, "temperature": 0}
    request["extra_body"] = {**BLEND, "ignore_eos": True}
    blended(lambda: client.chat.completions.create(**request))
    chunks = list(client.chat.completions.create(**request, stream=True, **options))
    whole = client.chat.completions.create(**request)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [reason for chunk in chunks for choice in chunk.choices if (reason := choice.finish_reason)] == ["length"]
    assert all("kvblend" not in chunk.model_dump() for chunk in chunks[:-1])
    assert kvblend_of(chunks[-1])["report"]["context_tokens"] > 0
    assert (chunks[-1].usage is not None) == include_usage


def test_openai_fields_reach_vllm(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=6, n=2, seed=7, temperature=0.8, logprobs=True, top_logprobs=3,
        stop=["\n"], extra_body=BLEND,
    )  # fmt: skip
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert choice.logprobs is not None and choice.logprobs.content
        assert "".join(token.token for token in choice.logprobs.content).startswith(choice.message.content or "")
        assert all(len(token.top_logprobs) in (3, 4) for token in choice.logprobs.content)


def test_documents_stand_before_the_last_user_message(client: OpenAI, model: str) -> None:
    messages: Any = [
        {"role": "system", "content": "Answer in one word."},
        *QUESTION,
        {"role": "assistant", "content": "Brenner."},
        {"role": "user", "content": [{"type": "text", "text": "In which year?"}]},
    ]
    answer = client.chat.completions.create(
        model=model, messages=messages, max_tokens=16, temperature=0, extra_body=BLEND
    )
    first_turn = client.chat.completions.create(
        model=model, messages=messages[:2], max_tokens=2, temperature=0, extra_body=BLEND
    )
    ours, reference = kvblend_of(answer), kvblend_of(first_turn)
    assert ours["sources"] == reference["sources"] and len(ours["sources"]) == 2
    more = ours["report"]["context_tokens"] - reference["report"]["context_tokens"]
    assert more > 0, "the earlier turns stand before them"
    questions = [each["report"]["prompt_tokens"] - each["report"]["context_tokens"] for each in (ours, reference)]
    assert questions[0] < questions[1], "the last question, which is shorter, behind them"


def test_a_chat_over_a_collection_retrieves_for_the_newest_message(
    client: OpenAI, model: str, service: RunningService
) -> None:
    with Client(service.url) as ingest:
        ingest.create_collection("chat")
        for text in ("The bakery of Vik opens at five.", "The bridge of Vik is closed in winter."):
            ingest.wait(ingest.add_document("chat", text), timeout_s=120)
    messages: Any = [
        *QUESTION,
        {"role": "assistant", "content": "Brenner."},
        {"role": "user", "content": "Vik's bakery?"},
    ]
    answer = client.chat.completions.create(
        model=model, messages=messages, max_tokens=2, extra_body={"kvblend": {"collection": "chat"}}
    )
    assert kvblend_of(answer)["sources"][0]["text"] == "The bakery of Vik opens at five."


def test_without_documents_vllm_answers_alone(client: OpenAI, model: str, service: RunningService) -> None:
    request: Any = {"model": model, "messages": QUESTION, "max_tokens": 8, "temperature": 0}
    ours = client.chat.completions.create(**request, extra_body={"kvblend": {}})
    with OpenAI(base_url=f"{service.engine_url}/v1", api_key="none") as vllm:
        theirs = vllm.chat.completions.create(**request)
    assert ours.choices == theirs.choices
    assert kvblend_of(ours)["report"]["outcome"] == "prefilled"
    assert "kvblend" not in client.chat.completions.create(**request).model_dump(), "it is vllm's own, unasked"
    chunks = list(client.chat.completions.create(**request, extra_body={"kvblend": {}}, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == theirs.choices[0].message.content
    assert kvblend_of(chunks[-1])["report"]["prompt_tokens"] == theirs.usage.prompt_tokens


def test_text_completions_take_texts_tokens_and_documents(client: OpenAI, model: str) -> None:
    request: Any = {"model": model, "prompt": LENGTH, "max_tokens": 4, "temperature": 0}
    plain = client.completions.create(**request)
    assert plain.usage is not None and plain.usage.completion_tokens <= 4
    tokens = client.completions.create(model=model, prompt=[1, 2, 3], max_tokens=4, temperature=0)
    assert tokens.usage is not None and tokens.usage.prompt_tokens == 3
    whole = blended(lambda: client.completions.create(**request, extra_body=BLEND))
    assert [source["document_id"] for source in kvblend_of(whole)["sources"]] == [None, "orm"]
    assert whole.usage.prompt_tokens > plain.usage.prompt_tokens
    streamed = client.completions.create(**request, extra_body=BLEND, stream=True)
    assert "".join(choice.text for chunk in streamed for choice in chunk.choices) == whole.choices[0].text


def test_what_vllm_refuses_is_refused_in_its_words(client: OpenAI, model: str) -> None:
    with pytest.raises(BadRequestError, match="temperature"):
        client.chat.completions.create(model=model, messages=QUESTION, temperature=-1, extra_body=BLEND)
    with pytest.raises(NotFoundError, match="does not exist"):
        client.chat.completions.create(model="another", messages=QUESTION, extra_body=BLEND)
    with pytest.raises(BadRequestError, match="more than the model's 4096"):
        client.chat.completions.create(model=model, messages=QUESTION, max_tokens=5000, extra_body=BLEND)


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Vik", "Halden"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
NAMED: Any = {"type": "function", "function": {"name": "weather"}}
TOOL_TEMPLATE = (
    "{% for t in tools or [] %}Tool: {{ t['function']['name'] }}\n{% endfor %}"
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
)


@pytest.mark.parametrize("blend", [{}, BLEND])
@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_called_with_documents_and_without(
    client: OpenAI, model: str, stream: bool, blend: dict[str, Any]
) -> None:
    request: Any = {"model": model, "messages": QUESTION, "tools": [WEATHER], "tool_choice": NAMED, "temperature": 0}
    request |= {"max_tokens": 60, "extra_body": blend}
    if stream:
        pieces = [
            call.function
            for chunk in client.chat.completions.create(**request, stream=True)
            for choice in chunk.choices
            for call in choice.delta.tool_calls or []
        ]
        name = next(piece.name for piece in pieces if piece and piece.name)
        arguments = "".join(piece.arguments or "" for piece in pieces if piece)
    else:
        answer = client.chat.completions.create(**request)
        (call,) = answer.choices[0].message.tool_calls
        name, arguments = call.function.name, call.function.arguments
        assert ("kvblend" in answer.model_dump()) == bool(blend)
    assert name == "weather" and json.loads(arguments)["city"] in ("Vik", "Halden")


def test_structured_output_holds_over_a_blended_context(client: OpenAI, model: str) -> None:
    schema = {"type": "object", "properties": {"built": {"type": "integer", "maximum": 2000}}, "required": ["built"]}
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "bridge", "schema": schema}}
    request: Any = {"model": model, "messages": QUESTION, "temperature": 0, "max_tokens": 40}
    answer = blended(lambda: client.chat.completions.create(**request, response_format=wanted, extra_body=BLEND))
    assert isinstance(json.loads(answer.choices[0].message.content)["built"], int)
    assert kvblend_of(answer)["report"]["outcome"] in ("blended", "prefix_hit")


def test_the_prompt_is_on_the_template_that_vllm_uses(client: OpenAI, model: str) -> None:
    """Reference: vLLM's rendering, with the passages in the message as text. Ours: the tokens that vLLM answered."""
    request: Any = {"model": model, "tools": [WEATHER], "max_tokens": 1, "temperature": 0}
    extra = {"chat_template": TOOL_TEMPLATE, "return_token_ids": True}
    documents: Any = DOCUMENTS
    told = "".join(f"{each if isinstance(each, str) else each['text']}\n\n" for each in documents)
    question = QUESTION[0]["content"]
    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]
    whole: Any = [messages[0], {"role": "user", "content": f"Passages:\n\n{told}Question: {question}"}]
    ours = client.chat.completions.create(**request, messages=messages, extra_body={**extra, **BLEND}).model_dump()
    theirs = client.chat.completions.create(**request, messages=whole, extra_body=extra).model_dump()
    assert text_of(client, ours["prompt_token_ids"]) == text_of(client, theirs["prompt_token_ids"])
    assert text_of(client, ours["prompt_token_ids"]).startswith("Tool: weather\nsystem: Be brief.")


def text_of(client: OpenAI, token_ids: list[int]) -> str:
    answer = httpx.post(str(client.base_url.join("/detokenize")), json={"tokens": token_ids})
    text: str = answer.json()["prompt"]
    return text
