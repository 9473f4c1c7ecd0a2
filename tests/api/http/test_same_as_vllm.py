"""What asks nothing of the service is vLLM's to answer. Reference: vLLM itself. Ours: through the service."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.service import RunningService

SAID = [{"role": "user", "content": "Name a river."}]
LONG = [{"role": "system", "content": "Be brief."}, *SAID]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Vik", "Halden"]}},
            "required": ["city"],
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"river": {"type": "string", "enum": ["Orm", "Vik"]}},
    "required": ["river"],
    "additionalProperties": False,
}
CALLED = [
    *SAID,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "1", "content": "Rain."},
]
GREEDY = {"temperature": 0, "max_tokens": 4}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "river", "schema": SCHEMA}}

CHATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "system": {"messages": LONG},
    "several": {"n": 3, "seed": 5, "temperature": 0.9},
    "logprobs": {"logprobs": True, "top_logprobs": 5},
    "logprobs of none": {"logprobs": True, "top_logprobs": 0},
    "stop": {"stop": ["a", "e"], "include_stop_str_in_output": True},
    "stop tokens": {"stop_token_ids": [28, 30], "max_tokens": 20},
    "token ids": {"return_token_ids": True},
    "echo": {"echo": True, "add_generation_prompt": False, "continue_final_message": True},
    "schema": {"response_format": JSON_SCHEMA, "max_tokens": 20},
    "object": {"response_format": {"type": "json_object"}},
    "choice": {"structured_outputs": {"choice": ["yes", "no"]}},
    "regex": {"structured_outputs": {"regex": "[0-9]{3}"}},
    "named tool": {
        "tools": [WEATHER],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "max_tokens": 40,
    },
    "required tool": {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 40},
    "free tool": {"tools": [WEATHER]},
    "no tool": {"tools": [WEATHER], "tool_choice": "none"},
    "after a tool": {"messages": CALLED, "tools": [WEATHER]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Name a lake."}]}]},
    "bias": {"logit_bias": {"28": 5.0}},
    "words": {"bad_words": ["the"]},
    "longest": {"max_completion_tokens": 3},
    "salt": {"cache_salt": "salt"},
    "template": {"chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}"},
    "unknown field": {"some_day": 1},
    "bad temperature": {"temperature": -1},
    "bad top_p": {"top_p": 5},
    "bad n": {"n": 0},
    "bad length": {"max_tokens": -5},
    "too long": {"max_tokens": 10**6},
    "bad logprobs": {"top_logprobs": 3},
    "bad stream options": {"stream_options": {"include_usage": True}},
    "bad model": {"model": "another"},
    "bad messages": {"messages": "text"},
    "no messages": {"messages": None},
    "bad role": {"messages": [{"role": "nobody", "content": 5}]},
    "bad schema": {"response_format": {"type": "json_schema"}},
    "bad choice": {"tool_choice": "some", "tools": [WEATHER]},
    "tool of no name": {"tools": [{"type": "function"}]},
    "bad bias": {"logit_bias": {"x": 1}},
    "priority": {"priority": 5},
    "picture": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
}
COMPLETIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "several prompts": {"prompt": ["One", "Two", "Three"]},
    "tokens": {"prompt": [504, 253, 3]},
    "several of tokens": {"prompt": [[504, 253], [28, 30, 31]]},
    "several each": {"prompt": ["One", "Two"], "n": 2, "seed": 1, "temperature": 0.9},
    "echo": {"echo": True, "logprobs": 2},
    "echo alone": {"echo": True, "max_tokens": 1, "logprobs": 0},
    "logprobs": {"logprobs": 3},
    "prompt logprobs": {"prompt_logprobs": 2},
    "stop": {"stop": "e"},
    "schema": {"response_format": JSON_SCHEMA, "max_tokens": 20},
    "token ids": {"return_token_ids": True},
    "tokens as ids": {"logprobs": 1, "return_tokens_as_token_ids": True},
    "cut prompt": {"prompt": "One two three four five six seven", "truncate_prompt_tokens": 3, "echo": True},
    "bad logprobs": {"logprobs": 50},
    "bad temperature": {"temperature": "hot"},
    "bad prompt": {"prompt": {"a": 1}},
    "empty prompt": {"prompt": []},
    "odd token": {"prompt": [10**7]},
    "bad echo": {"echo": True, "stream": True, "prompt_logprobs": 1},
    "suffix": {"suffix": "!"},
    "bad model": {"model": "another"},
}
STREAMED_CHATS = (
    "plain",
    "several",
    "logprobs",
    "stop",
    "token ids",
    "schema",
    "required tool",
    "bad temperature",
    "bad model",
)
STREAMED_COMPLETIONS = ("plain", "several prompts", "several each", "echo", "bad logprobs")
OTHERS: dict[str, tuple[str, str, Any]] = {
    "models": ("GET", "/v1/models", None),
    "version": ("GET", "/version", None),
    "health": ("GET", "/health", None),
    "tokenize": ("POST", "/tokenize", {"prompt": "Name a river.", "return_token_strs": True}),
    "tokenize a chat": ("POST", "/tokenize", {"messages": LONG, "tools": [WEATHER]}),
    "detokenize": ("POST", "/detokenize", {"tokens": [504, 253, 3]}),
    "responses": ("POST", "/v1/responses", {"input": "Name a river.", "max_output_tokens": 8, "temperature": 0}),
    "no such response": ("GET", "/v1/responses/resp_1", None),
    "messages": ("POST", "/v1/messages", {"model": "MODEL", "messages": SAID, **GREEDY}),
    "count of tokens": ("POST", "/v1/messages/count_tokens", {"model": "MODEL", "messages": SAID}),
    "batch": ("POST", "/v1/chat/completions/batch", {"messages": [SAID, LONG], **GREEDY}),
    "render": ("POST", "/v1/chat/completions/render", {"messages": SAID}),
    "embeddings": ("POST", "/v1/embeddings", {"input": "A river."}),
    "rerank": ("POST", "/rerank", {"query": "A river.", "documents": ["Orm", "Vik"]}),
}
DIFFERENT = re.compile(
    r'"(?:id|created|created_at|completed_at|request_id|call_id|item_id|response_id)": ?(?:"[^"]*"|[0-9.]+|null)'
    r'|"metrics": ?\{[^}]*\}|"cached_tokens": ?[0-9]+|(?:chatcmpl|cmpl|resp|msg|rs|chatcmpl-tool)[-_][0-9a-f-]+'
)
"""What no two answers have in common."""


@pytest.fixture(scope="module")
def both(service: RunningService) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """vLLM and the service in front of it."""
    with (
        httpx.Client(base_url=service.engine_url, timeout=120) as vllm,
        httpx.Client(base_url=service.url, timeout=120) as ours,
    ):
        yield vllm, ours


def answer(client: httpx.Client, method: str, path: str, body: Any) -> tuple[int, str, str]:
    """Status, content type and body but for what differs anyway; of a stream all events."""
    response = client.request(method, path, json=body) if body is not None else client.request(method, path)
    kind = response.headers.get("content-type", "")
    text = DIFFERENT.sub("~", response.text)
    if kind.startswith("text/event-stream"):  # choices of several prompts come as they are computed
        text = "\n\n".join(sorted(text.split("\n\n")))
    return response.status_code, kind, text


def same(both: tuple[httpx.Client, httpx.Client], path: str, body: Any, *, method: str = "POST") -> tuple[int, str]:
    """Ask both, hold them equal, and return status and body."""
    theirs, ours = (answer(client, method, path, body) for client in both)
    if ours != theirs:  # over its own prefix cache vLLM may round otherwise than without
        theirs = answer(both[0], method, path, body)
    assert ours == theirs
    return ours[0], ours[2]


@pytest.mark.parametrize("name", CHATS)
def test_chats(both: tuple[httpx.Client, httpx.Client], name: str) -> None:
    status, text = same(both, "/v1/chat/completions", {"messages": SAID, **GREEDY, **CHATS[name]})
    is_refused = name.startswith(("bad", "no messages", "too", "tool of", "picture"))
    assert (status >= 400) == is_refused, text


@pytest.mark.parametrize("name", STREAMED_CHATS)
def test_streamed_chats(both: tuple[httpx.Client, httpx.Client], name: str) -> None:
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    same(both, "/v1/chat/completions", {"messages": SAID, **GREEDY, **streamed, **CHATS[name]})


@pytest.mark.parametrize("name", COMPLETIONS)
def test_completions(both: tuple[httpx.Client, httpx.Client], name: str) -> None:
    same(both, "/v1/completions", {"prompt": "The longest river is", **GREEDY, **COMPLETIONS[name]})


@pytest.mark.parametrize("name", STREAMED_COMPLETIONS)
def test_streamed_completions(both: tuple[httpx.Client, httpx.Client], name: str) -> None:
    body = {"prompt": "The longest river is", **GREEDY, "stream": True, **COMPLETIONS[name]}
    same(both, "/v1/completions", body)


@pytest.mark.parametrize("name", OTHERS)
def test_other_routes(both: tuple[httpx.Client, httpx.Client], name: str) -> None:
    method, path, body = OTHERS[name]
    model = both[0].get("/v1/models").json()["data"][0]["id"]
    same(both, path, json.loads(json.dumps(body).replace("MODEL", model)), method=method)


def test_the_comparison_sees_a_difference(both: tuple[httpx.Client, httpx.Client]) -> None:
    """Negative control: one token more."""
    body = {"messages": SAID, **GREEDY, "ignore_eos": True}
    theirs = answer(both[0], "POST", "/v1/chat/completions", body)
    assert answer(both[1], "POST", "/v1/chat/completions", {**body, "max_tokens": 9}) != theirs
    assert answer(both[1], "POST", "/v1/chat/completions", body) == theirs
