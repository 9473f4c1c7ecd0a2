"""The OpenAI request bodies that the service reads itself; what it does not know goes on to vLLM as it is."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from kvblend.api.http.passed_body import Xargs, without_orders
from kvblend.api.prompt.sent_messages import is_text_part
from kvblend.core.errors import InvalidRequestError
from kvblend.core.rest import BlendOptions

__all__ = ["ChatBody", "ChatRequest", "CompletionBody", "CompletionRequest", "Conversation", "split_conversation"]

MaxTokens = Annotated[int, Field(ge=1)] | None
OURS = ("kvblend", "stream")


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow")

    not_with_documents: ClassVar[tuple[str, ...]] = ("truncate_prompt_tokens",)

    model: str | None = None
    """Whatever the service serves where not given."""
    stream: bool | None = False
    """Whether the answer comes as server-sent events."""
    stream_options: dict[str, Any] | None = None
    """OpenAI's: `include_usage`."""
    vllm_xargs: Xargs = None
    """vLLM's, without orders to the connector."""
    structured_outputs: dict[str, Any] | None = None  # vLLM fails on any other type
    """vLLM's."""
    kvblend: BlendOptions | None = None
    """Which passages to blend, and how; without it the request is vLLM's, unless [ingested text](drop_in.md) stands in
    it."""

    @property
    def blends(self) -> bool:
        """Whether there are passages to blend; otherwise vLLM answers alone."""
        return self.kvblend is not None and bool(self.kvblend.documents or self.kvblend.collection)

    def check_goes_with_documents(self) -> None:
        """Raise InvalidRequestError for a field that would part the prompt from its context plan."""
        for name in self.not_with_documents:
            if (self.model_extra or {}).get(name):
                raise InvalidRequestError(f"{name} does not go together with documents", param=name)

    @property
    def wants_usage(self) -> bool:
        return bool((self.stream_options or {}).get("include_usage"))

    def for_engine(self, *known: str) -> dict[str, Any]:
        """Every field that was given, for vLLM, without ours and the `known` ones that the service handles."""
        fields = {
            name: value
            for name, value in self.model_dump(exclude_unset=True).items()
            if name not in OURS and name not in known
        }
        return without_orders(fields)


class CompletionBody(_Body):
    """`POST /v1/completions`."""

    prompt: (
        str
        | Annotated[list[int], Field(fail_fast=True)]
        | Annotated[list[str], Field(fail_fast=True)]
        | Annotated[list[Annotated[list[int], Field(fail_fast=True)]], Field(fail_fast=True)]
    )
    """A text, its tokens, or a list of either."""
    max_tokens: MaxTokens = None
    """The longest answer."""


class ChatBody(_Body):
    """`POST /v1/chat/completions`."""

    not_with_documents = ("truncate_prompt_tokens", "echo")

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, fail_fast=True)]
    """OpenAI's, oldest first."""
    max_tokens: MaxTokens = None
    """The longest answer."""
    max_completion_tokens: MaxTokens = None
    """The same, by its newer name."""
    chat_template_kwargs: dict[str, Any] | None = None
    """vLLM's: what the chat template is given."""
    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    """OpenAI's: what the model may call."""

    @property
    def has_own_template(self) -> bool:
        """Whether it tells the template more than the messages, in front of them."""
        extra = self.model_extra or {}
        return bool(self.tools or extra.get("chat_template") or extra.get("documents"))


def _whose(body: Any) -> str:
    """A body that asks nothing of the service is vLLM's, to judge and to answer."""
    ours = body.get("kvblend") if isinstance(body, dict) else getattr(body, "kvblend", None)
    return "vllm" if ours is None else OURS_TAG


OURS_TAG = "body"
"""It stands in the place of an error, where FastAPI's own `body` is left out."""
Passed = Annotated[dict[str, Any], Tag("vllm")]
ChatRequest = Annotated[Annotated[ChatBody, Tag(OURS_TAG)] | Passed, Discriminator(_whose)]
CompletionRequest = Annotated[Annotated[CompletionBody, Tag(OURS_TAG)] | Passed, Discriminator(_whose)]


class Conversation(BaseModel):
    """Messages taken apart: the leading system messages, the turns before the last user message, that message, and what
    comes behind it; contents as text. `has_media`: some content is no text, and vLLM must lay out the prompt itself."""

    preamble: str | None
    earlier: list[dict[str, Any]]
    question: str
    later: list[dict[str, Any]]
    has_media: bool = False


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
        has_media=any(not is_text_part(part) for message in messages for part in _parts(message)),
    )


def _text(message: Mapping[str, Any], index: int) -> str:
    """The text of a message's content, without what else is in it."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None and message.get("role") == "assistant":
        return ""
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if is_text_part(part))
    raise InvalidRequestError(
        "with documents, a message's content must be text or a list of parts", param=f"messages.{index}.content"
    )


def _parts(message: Mapping[str, Any]) -> list[Any]:
    content = message.get("content")
    return content if isinstance(content, list) else []
