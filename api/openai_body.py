"""The OpenAI request bodies that the service reads itself; what it does not know goes on to vLLM as it is."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from kvblend.core.errors import InvalidRequestError
from kvblend.core.rest import BlendOptions

__all__ = ["ChatBody", "CompletionBody", "Conversation", "split_conversation"]

MaxTokens = Annotated[int, Field(ge=1)] | None
Scalar = str | int | float
ORDERS = "kv_transfer_params"
OURS = ("kvblend", ORDERS, "stream")


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str | None = None
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    vllm_xargs: dict[str, Scalar | list[Scalar]] | None = None
    structured_outputs: dict[str, Any] | None = None  # vLLM fails on any other type
    kvblend: BlendOptions | None = None

    @property
    def blends(self) -> bool:
        """Whether there are passages to blend; otherwise vLLM answers alone."""
        return self.kvblend is not None and bool(self.kvblend.documents or self.kvblend.collection)

    @property
    def wants_usage(self) -> bool:
        return bool((self.stream_options or {}).get("include_usage"))

    def for_engine(self, *known: str) -> dict[str, Any]:
        """Every field that was given, for vLLM, without ours and the `known` ones that the service handles.

        Orders to the connector are the service's alone: a client's own would pass by the gate and the reports.
        """
        fields = {
            name: value
            for name, value in self.model_dump(exclude_unset=True).items()
            if name not in OURS and name not in known
        }
        if self.vllm_xargs is not None:  # where vLLM looks for them, too
            fields["vllm_xargs"] = {
                name: value
                for name, value in self.vllm_xargs.items()
                if name != ORDERS and "kvblend" not in name.lower()
            }
        return fields


class CompletionBody(_Body):
    """`POST /v1/completions`."""

    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: MaxTokens = None


class ChatBody(_Body):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_tokens: MaxTokens = None
    max_completion_tokens: MaxTokens = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tool_choice: Any = None
    tools: list[Any] | None = None


class Conversation(BaseModel):
    """Messages taken apart: the leading system messages, the turns before the last user message, that message, and what
    comes behind it."""

    preamble: str | None
    earlier: list[dict[str, Any]]
    question: str
    later: list[dict[str, Any]]


def split_conversation(messages: Sequence[Mapping[str, Any]]) -> Conversation:
    """Find where documents go: the start of the last user message, which they were retrieved for.

    Raises InvalidRequestError where there is none.
    """
    plain = [{**message, "content": _text(message, index)} for index, message in enumerate(messages)]
    num_system = next((i for i, m in enumerate(plain) if m.get("role") not in ("system", "developer")), len(plain))
    last = next((i for i in reversed(range(len(plain))) if plain[i].get("role") == "user"), -1)
    if last < num_system:
        raise InvalidRequestError("with documents, a message behind the system's must be the user's", param="messages")
    preamble = "\n\n".join(message["content"] for message in plain[:num_system]) if num_system else None
    return Conversation(
        preamble=preamble,
        earlier=plain[num_system:last],
        question=plain[last]["content"],
        later=plain[last + 1 :],
    )


def _text(message: Mapping[str, Any], index: int) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None and message.get("role") == "assistant":
        return ""
    if isinstance(content, list):
        parts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
        if len(parts) == len(content):
            return "\n".join(parts)
    raise InvalidRequestError("with documents, a message's content must be text", param=f"messages.{index}.content")
