"""A conversation's messages as vLLM gives them to the model's template."""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

__all__ = ["is_text_part", "sent_messages"]


def sent_messages(messages: Any) -> list[dict[str, Any]] | None:
    """Contents in parts as one text, and calls' arguments as JSON's values; None where there is more than text."""
    if not isinstance(messages, list) or not messages:
        return None
    found = []
    for message in messages:
        content = _text(message.get("content")) if isinstance(message, dict) else None
        if content is None:
            return None
        sent = {**message, "content": content}
        if isinstance(message.get("tool_calls"), list):
            sent["tool_calls"] = [_with_values(call) for call in message["tool_calls"]]
        found.append(sent)
    return found


def is_text_part(part: Any) -> bool:
    """Whether vLLM takes a part of a message's content for text."""
    if not isinstance(part, dict) or not isinstance(part.get("text"), str):
        return False
    return part.get("type", "text") in ("text", "input_text")


def _text(content: Any) -> str | None:
    if isinstance(content, list):
        texts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
        return "\n".join(texts) if len(texts) == len(content) else None
    if content is None:
        return ""
    return content if isinstance(content, str) else None


def _with_values(call: Any) -> Any:
    """A call whose arguments, JSON in a text, are what they say."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if isinstance(function, Mapping) and isinstance(function.get("arguments"), str):
        with suppress(ValueError, RecursionError):  # no JSON, or none that can be read
            return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
    return call
