"""What a chat request tells its template, put together as vLLM does it.

A client's own template is a program of its client's. It is vLLM's to run or to refuse, and never runs here.
"""

from collections.abc import Mapping
from typing import Any

from kvblend.core.errors import InvalidRequestError

__all__ = ["template_kwargs", "template_options"]

OWN_FIELDS = ("tools", "add_generation_prompt", "continue_final_message")
TOLD_FIELDS = ("documents", "reasoning_effort")
NO_VARIABLES = ("chat_template", "conversation", "tokenize")
"""What rendering itself is told, by names that no template has a variable of."""


def template_kwargs(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A request's `chat_template_kwargs`, with what its other fields add to them.

    Raises InvalidRequestError for one that is no variable of a template's, as vLLM does.
    """
    told: dict[str, Any] = dict(fields.get("chat_template_kwargs") or {})
    for name in NO_VARIABLES:
        if name in told:
            param = f"chat_template_kwargs.{name}"
            raise InvalidRequestError(f"{param} is no variable of a chat template", param=param)
    effort = fields.get("reasoning_effort")
    if effort is not None:
        told.setdefault("enable_thinking", effort != "none")
    return told | {name: fields[name] for name in TOLD_FIELDS if fields.get(name) is not None}


def template_options(fields: Mapping[str, Any]) -> dict[str, Any]:
    """All of it, for the model's template where that is rendered here. Raises InvalidRequestError likewise."""
    return {**template_kwargs(fields), **{name: fields[name] for name in OWN_FIELDS if fields.get(name) is not None}}
