"""What vLLM makes of odd values in its own fields, through the service: a refusal in its words, never a 5xx."""

import json
import time
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.service import RunningService

NUM_EXAMPLES, MORE_EXAMPLES = 50, 150
MOST_SECONDS, MORE_SECONDS = 8.0, 20.0
"""In `make test`, and in `make test-extended`."""
FIELDS = (
    "add_special_tokens", "allowed_token_ids", "bad_words", "best_of", "cache_salt", "chat_template",
    "chat_template_kwargs", "documents", "echo", "logit_bias", "logits_processors", "logprobs", "max_completion_tokens",
    "messages", "min_p", "min_tokens", "model", "n", "presence_penalty", "priority", "prompt", "prompt_logprobs",
    "repetition_penalty", "response_format", "return_tokens_as_token_ids", "seed", "stop", "stop_token_ids", "stream",
    "stream_options", "structured_outputs", "suffix", "temperature", "tool_choice", "tools", "top_k", "top_logprobs",
    "top_p", "truncate_prompt_tokens", "user", "vllm_xargs",
)  # fmt: skip
KEYS = ("a", "5", "-1", "type", "function", "kv_transfer_params", "chat_template", "tokenize")
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), 1 << 63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=2),
    max_leaves=4,
)


@pytest.mark.parametrize("documents", [[], ["A passage of text."]])
@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/completions", {"prompt": "?"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "?"}]}),
    ],
)
def test_no_field_of_vllms_is_answered_by_a_5xx(
    service: RunningService, path: str, asked: dict[str, Any], documents: list[str], request: pytest.FixtureRequest
) -> None:
    extended = request.config.getoption("extended")
    until = time.monotonic() + (MORE_SECONDS if extended else MOST_SECONDS)
    num_examples = MORE_EXAMPLES if extended else NUM_EXAMPLES
    with httpx.Client(base_url=service.url, timeout=60, limits=httpx.Limits(max_connections=1)) as client:

        @settings(max_examples=num_examples, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
        @given(st.dictionaries(st.sampled_from(FIELDS), values, min_size=1, max_size=2))
        def check(fields: dict[str, Any]) -> None:
            if time.monotonic() > until:
                return
            body = {"max_tokens": 2, **asked, **fields, "kvblend": {"documents": documents}}
            content = json.dumps(body).encode()
            response = client.post(path, content=content, headers={"Content-Type": "application/json"})
            assert response.status_code < 500, f"{content!r}: {response.text[:500]}"

        check()
        assert client.post(path, json={"max_tokens": 2, **asked}).status_code == 200, "and vLLM lives"
