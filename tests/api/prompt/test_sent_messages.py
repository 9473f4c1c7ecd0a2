"""The tokens that we look for passages in are those that vLLM makes of a request."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from vllm.config import ModelConfig, VllmConfig
from vllm.renderers import ChatParams, renderer_from_config

from kvblend.api.prompt.builder import PromptBuilder
from kvblend.api.prompt.sent_messages import sent_messages

CALL = {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": '{"what": "lamp"}'}}
SYSTEM = {"role": "system", "content": "Answer from this.\n\nThe lamp <|im_end|> burns."}
USER = {"role": "user", "content": [{"type": "text", "text": "What does"}, {"type": "text", "text": "it burn?"}]}
TOOL = {"role": "tool", "tool_call_id": "1", "content": "Oil.\n\n"}
CALLS = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls or [] %}{{ call.function.arguments.what }}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""A template that looks into a call's arguments."""


@pytest.fixture(scope="module")
def prompts(demo_model_path: Path) -> PromptBuilder:
    return builder(demo_model_path)


def builder(model: Path, template: str | None = None) -> PromptBuilder:
    """Of a model's tokenizer, with another template than its own."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = template or tokenizer.chat_template
    return PromptBuilder(tokenizer)


@pytest.fixture(scope="module")
def renderer(demo_model_path: Path) -> Any:
    """vLLM's own, without an engine."""
    return renderer_from_config(VllmConfig(model_config=ModelConfig(model=str(demo_model_path))))


@pytest.mark.parametrize("template", [None, CALLS], ids=["the model's template", "one that reads calls"])
@pytest.mark.parametrize("generates", [True, False])
@pytest.mark.parametrize(
    "messages",
    [
        [USER],
        [SYSTEM, USER],
        [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, TOOL],
        [USER, {"role": "assistant", "tool_calls": [CALL], "content": ""}, {**TOOL, "content": USER["content"]}],
    ],
)
def test_they_are_vllms(
    prompts: PromptBuilder,
    renderer: Any,
    demo_model_path: Path,
    messages: list[dict[str, Any]],
    generates: bool,
    template: str | None,
) -> None:
    """Reference: vLLM's own renderer. Ours: the service's."""
    options: dict[str, Any] = {"add_generation_prompt": generates}
    plain = sent_messages(messages)
    assert plain is not None
    if template is not None:
        prompts = builder(demo_model_path, template)
    ours = prompts.chat_ids(plain, options)
    _, prompt = renderer.render_messages(messages, ChatParams(chat_template=template, chat_template_kwargs=options))
    assert list(ours) == prompt["prompt_token_ids"]


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        "x",
        [1],
        [{"role": "user", "content": 5}],
        [USER, {"role": "user", "content": [{"type": "image_url"}]}],
    ],
)
def test_more_than_text_is_left_to_vllm(messages: Any) -> None:
    assert sent_messages(messages) is None


@pytest.mark.parametrize("arguments", ["{", "[" * 100_000, "9" * 5000])
def test_arguments_that_are_no_json_stay_text(arguments: str) -> None:
    message = {**USER, "tool_calls": [{**CALL, "function": {"name": "look_up", "arguments": arguments}}]}
    assert sent_messages([message]) == [{**message, "content": "What does\nit burn?"}]
