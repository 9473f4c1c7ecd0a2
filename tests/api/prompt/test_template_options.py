"""What a chat request tells its template."""

from typing import Any

import pytest

from kvblend.api.prompt.template_options import template_options
from kvblend.core.errors import InvalidRequestError

TOOLS = [{"type": "function", "function": {"name": "search"}}]


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"messages": [], "temperature": 0}, {}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "none", "enable_thinking": False}),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False, "tone": "dry"}},
            {"reasoning_effort": "low", "enable_thinking": False, "tone": "dry"},
        ),
        ({"tools": TOOLS, "documents": [{"text": "a"}]}, {"tools": TOOLS, "documents": [{"text": "a"}]}),
        ({"add_generation_prompt": False, "continue_final_message": True}, None),
    ],
)
def test_options(fields: dict[str, Any], options: dict[str, Any] | None) -> None:
    """As vLLM: an effort also switches thinking, but not against the request's own word."""
    assert template_options(fields) == (fields if options is None else options)


@pytest.mark.parametrize("name", ["chat_template", "conversation", "tokenize"])
def test_what_is_no_variable_of_a_template_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=name) as refusal:
        template_options({"chat_template_kwargs": {"tone": "dry", name: None}})
    assert refusal.value.param == f"chat_template_kwargs.{name}"


def test_a_clients_template_is_no_option() -> None:
    assert template_options({"chat_template": "{{ 1 / 0 }}", "tools": TOOLS}) == {"tools": TOOLS}
