"""What a chat request tells its template, put together as vLLM does it."""

from collections.abc import Mapping
from typing import Any

__all__ = ["template_kwargs", "template_options"]

OWN_FIELDS = ("tools", "chat_template", "add_generation_prompt", "continue_final_message")
TOLD_FIELDS = ("documents", "reasoning_effort")


def template_kwargs(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A request's `chat_template_kwargs`, with what its other fields add to them."""
    told: dict[str, Any] = dict(fields.get("chat_template_kwargs") or {})
    effort = fields.get("reasoning_effort")
    if effort is not None:
        told.setdefault("enable_thinking", effort != "none")
    return told | {name: fields[name] for name in TOLD_FIELDS if fields.get(name) is not None}


def template_options(fields: Mapping[str, Any]) -> dict[str, Any]:
    """All of it, for a template that is rendered here."""
    return {**template_kwargs(fields), **{name: fields[name] for name in OWN_FIELDS if fields.get(name) is not None}}
