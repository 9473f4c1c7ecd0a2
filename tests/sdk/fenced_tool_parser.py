"""A parser of tool calls for vLLM (`--tool-parser-plugin`): Qwen2.5-Coder puts its calls into fences of Markdown, which
vLLM's own parser for its family does not read."""

import re
from typing import Any

from vllm.tool_parsers import ToolParserManager
from vllm.tool_parsers.hermes_tool_parser import Hermes2ProToolParser

__all__ = ["FencedToolParser"]

FENCED = re.compile(r"```(?:json)?\s*(\{.*?)\s*(?:```|\Z)", re.DOTALL)
BEGUN = re.compile(r"`{1,3}(?:j|js|jso|json)?\s*\Z")
"""What may come to be such a fence."""


@ToolParserManager.register_module("fenced")
class FencedToolParser(Hermes2ProToolParser):  # type: ignore[misc]
    """Hermes's, of a text whose fenced objects stand between its tags."""

    def extract_tool_calls(self, model_output: str, request: Any) -> Any:
        return super().extract_tool_calls(_tagged(model_output), request)

    def extract_tool_calls_streaming(self, previous_text: str, current_text: str, *rest: Any, **named: Any) -> Any:
        tagged = BEGUN.sub("", _tagged(current_text))
        return super().extract_tool_calls_streaming(previous_text, tagged, *rest, **named)


def _tagged(text: str) -> str:
    def tags(found: re.Match[str]) -> str:
        closing = Hermes2ProToolParser.tool_call_end_token if found[0].endswith("```") else ""
        return f"{Hermes2ProToolParser.tool_call_start_token}{found[1]}{closing}"

    return FENCED.sub(tags, text)
