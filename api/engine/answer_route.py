"""vLLM's two routes that answer a prompt of tokens: one continues it as text, the other as a chat.

A chat's messages stay the client's own, and vLLM's parsers of tools and reasoning read the answer; its prompt is given
as tokens where a decoder takes those of the prefill before it, in `kv_transfer_params`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvblend.api.engine.answer_tokens import CHAT_TOKEN_FIELDS, TOKEN_FIELDS

__all__ = ["CHAT", "COMPLETIONS", "AnswerRoute", "ending_with_usage"]


@dataclass(frozen=True)
class AnswerRoute:
    """`token_fields`: what makes its answers readable by `answer_tokens`; `length_fields`: those that bound an answer's
    length, the first that is given."""

    path: str
    token_fields: Mapping[str, Any]
    length_fields: Sequence[str]

    def max_tokens(self, fields: Mapping[str, Any]) -> int | None:
        """How long the answer may be; None where the request does not say."""
        return next((fields[name] for name in self.length_fields if fields.get(name) is not None), None)

    def with_prompt(self, body: Mapping[str, Any], token_ids: Sequence[int], *, max_model_len: int) -> dict[str, Any]:
        """The body with its prompt. Where it names no length, the answer may fill the model's."""
        if self.path == CHAT.path:
            orders = {**body.get("kv_transfer_params", {}), "prompt_token_ids": list(token_ids)}
            return {**body, "kv_transfer_params": orders}
        return {"max_tokens": max_model_len - len(token_ids), **body, "prompt": list(token_ids)}


def ending_with_usage(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a stream that ends with its usage, which the report needs, whether the client asks for it or not."""
    options = dict(body.get("stream_options") or {})
    if not options.get("include_usage"):
        options.pop("continuous_usage_stats", None)
    return {**body, "stream_options": {**options, "include_usage": True}}


COMPLETIONS = AnswerRoute("/v1/completions", TOKEN_FIELDS, ["max_tokens"])
CHAT = AnswerRoute("/v1/chat/completions", CHAT_TOKEN_FIELDS, ["max_completion_tokens", "max_tokens"])
