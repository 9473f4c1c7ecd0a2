"""Hostile bodies by the thousand over every route: none is answered by a 5xx, and none costs the next one anything."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.scripted_service import ScriptedService

NUM_EXAMPLES = 60
MOST_SECONDS = 40.0

odd_texts = st.sampled_from(["\ud800", "a\udfff", "\0", "", "\u202e", "x" * 600, "../..", "<|im_end|>", "é" * 3])
odd_numbers = st.sampled_from(
    [float("nan"), float("inf"), -float("inf"), 1e308, -1, 0, 1 << 31, 1 << 63, 1 << 64, 10**30, 0.5, -0.0]
)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | odd_texts | odd_numbers
anything = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | odd_texts, inner, max_size=3),
    max_leaves=6,
)
messages = st.just([{"role": "user", "content": "?"}]) | anything
blend = st.just({"documents": ["A passage."]}) | st.dictionaries(
    st.sampled_from(["documents", "collection", "recompute_ratio", "target_kl", "selector", "reuse"]), anything
)
templates = st.sampled_from(["{{ 1 / 0 }}", "{{ no.more }}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"])
template_kwargs = st.dictionaries(
    st.sampled_from(["chat_template", "conversation", "messages", "tokenize", "tools", "documents", "return_dict"]),
    templates | anything,
    max_size=2,
)
openai_fields = {
    name: anything
    for name in (
        "model", "n", "stop", "seed", "temperature", "top_p", "logit_bias", "max_tokens", "stream", "stream_options",
        "logprobs", "top_logprobs", "tools", "tool_choice", "vllm_xargs", "kv_transfer_params", "user",
        "max_completion_tokens", "documents", "reasoning_effort", "continue_final_message",
    )
} | {"chat_template": templates | anything, "chat_template_kwargs": template_kwargs | anything}  # fmt: skip


def body(required: dict[str, Any], optional: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Mostly what a route takes, with anything in its fields; now and then anything at all."""
    return st.fixed_dictionaries(required, optional={**optional, "unknown": anything}) | anything


BODIES = {
    ("POST", "/v1/collections"): body(
        {"name": st.just("other") | anything},
        {name: anything for name in ("preamble", "warm_context", "passage_tokens", "kv_quota_bytes", "kv_ttl_s")},
    ),
    ("PATCH", "/v1/collections/fuzz"): body({}, {"kv_quota_bytes": anything, "kv_ttl_s": anything}),
    ("POST", "/v1/collections/fuzz/documents"): body(
        {"text": st.just("A text.") | anything}, {name: anything for name in ("id", "name", "media_type", "metadata")}
    ),
    ("POST", "/v1/collections/fuzz/search"): body({"query": st.just("?") | anything}, {"top_k": anything}),
    ("POST", "/v1/collections/fuzz/query"): body(
        {"question": st.just("?") | anything},
        {
            name: anything
            for name in ("top_k", "recompute_ratio", "target_kl", "selector", "reuse", "max_tokens", "stream")
        },
    ),
    ("POST", "/v1/chat/completions"): body({"messages": messages}, {**openai_fields, "kvblend": blend}),
    ("POST", "/v1/completions"): body({"prompt": st.just("?") | anything}, {**openai_fields, "kvblend": blend}),
    **{
        ("POST", f"/v1/kv/{name}"): body(
            {"collection": st.just("fuzz") | anything},
            {"document_id": anything, "passage_ids": anything, "to": anything, "codec": anything},
        )
        for name in ("lookup", "pin", "unpin", "clear", "move", "compress")
    },
}


@pytest.fixture(scope="module")
def client(scripted: ScriptedService) -> Iterator[httpx.Client]:
    """One connection: what a request leaves on it, the next one meets."""
    with httpx.Client(base_url=scripted.url, timeout=60, limits=httpx.Limits(max_connections=1)) as client:
        client.post("/v1/collections", json={"name": "fuzz", "passage_tokens": 32}).raise_for_status()
        yield client


@pytest.mark.parametrize(("method", "path"), BODIES, ids=lambda part: str(part).strip("/"))
def test_no_body_is_answered_by_a_5xx(client: httpx.Client, method: str, path: str) -> None:
    until = time.monotonic() + MOST_SECONDS

    @settings(max_examples=NUM_EXAMPLES, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    @given(BODIES[method, path])
    def check(value: Any) -> None:
        if time.monotonic() > until:
            return
        content = json.dumps(value).encode()
        response = client.request(method, path, content=content, headers={"Content-Type": "application/json"})
        assert response.status_code < 500, f"{content[:500]!r}: {response.text[:500]}"
        assert "event: error" not in response.text or "internal_error" not in response.text, response.text[:500]

    check()


@pytest.mark.parametrize("path", [path for method, path in BODIES if method == "POST"])
def test_no_bytes_are_answered_by_a_5xx(client: httpx.Client, path: str) -> None:
    @settings(max_examples=30, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    @given(
        st.binary(max_size=40), st.sampled_from(["application/json", "multipart/form-data; boundary=x", "text/plain"])
    )
    def check(content: bytes, media_type: str) -> None:
        response = client.post(path, content=content, headers={"Content-Type": media_type})
        assert response.status_code < 500, f"{content!r} as {media_type}: {response.text[:500]}"

    check()


@settings(max_examples=60, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(name=st.text(max_size=10) | odd_texts, after=st.text(max_size=5), limit=anything)
def test_no_path_or_parameter_is_answered_by_a_5xx(client: httpx.Client, name: str, after: str, limit: Any) -> None:
    quoted = "".join(f"%{byte:02X}" for byte in name.encode(errors="surrogatepass"))
    for path in (
        f"/v1/collections/{quoted}",
        f"/v1/collections/fuzz/documents/{quoted}",
        f"/v1/collections/fuzz/jobs/{quoted}",
    ):
        assert client.get(path).status_code < 500, path
        if quoted and name != "fuzz":
            assert client.delete(path).status_code < 500, path
    parameters = {"after": after.encode(errors="replace"), "limit": repr(limit).encode(errors="replace")}
    assert client.get("/v1/collections/fuzz/documents", params=parameters).status_code < 500


def test_the_service_holds_nothing_that_it_cannot_say(client: httpx.Client) -> None:
    """After all of it: whatever was taken can be listed, searched and asked for."""
    assert client.get("/v1/collections").status_code == 200
    assert client.get("/v1/collections/fuzz/documents", params={"limit": 1000}).status_code == 200
    assert client.post("/v1/collections/fuzz/search", json={"query": "text", "top_k": 64}).status_code == 200
    assert client.post("/v1/collections/fuzz/query", json={"question": "?", "top_k": 3}).status_code == 200
