"""OpenAI's chats with our `kvblend` field: what is sent in it, and what of an answer the SDK reads."""

from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from kvblend.core.report import BlendReport
from kvblend.core.rest import BlendOptions, Source

__all__ = ["BlendResult", "ChatChunk", "ChatCompletion", "blend_field"]


def blend_field(options: BlendOptions) -> dict[str, Any]:
    """The `kvblend` field of a request. A document's metadata may hold anything: NumPy's scalars are numbers, bytes
    base64, and what else JSON does not know is its text."""
    plain = options.model_dump(by_alias=True, exclude_none=True)
    field: dict[str, Any] = to_jsonable_python(plain, bytes_mode="base64", fallback=_plain)
    return field


def _plain(value: Any) -> Any:
    """What JSON does not know, as something that it may."""
    return value.item() if getattr(value, "shape", None) == () else str(value)


class BlendResult(BaseModel, defer_build=True):
    """The `kvblend` field of an answer: how its context was made, and of which passages."""

    report: BlendReport
    sources: list[Source] = []


class ChatMessage(BaseModel, defer_build=True):
    role: str | None = None
    content: str | None = None


class ChatChoice(BaseModel, defer_build=True):
    message: ChatMessage
    finish_reason: str | None = None


class ChatUsage(BaseModel, defer_build=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(BaseModel, defer_build=True):
    """One whole answer."""

    id: str
    model: str
    choices: list[ChatChoice]
    usage: ChatUsage | None = None
    kvblend: BlendResult | None = None


class ChunkChoice(BaseModel, defer_build=True):
    delta: ChatMessage
    finish_reason: str | None = None


class ChatChunk(BaseModel, defer_build=True):
    """A piece of a streamed answer. The last one carries `kvblend`, and may have no choice."""

    id: str
    model: str
    choices: list[ChunkChoice] = []
    usage: ChatUsage | None = None
    kvblend: BlendResult | None = None
