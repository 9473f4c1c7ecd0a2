"""What `/v1/chat/completions` answers, as far as the SDK reads it: OpenAI's shapes and our `kvblend` field."""

from pydantic import BaseModel

from kvblend.core.report import BlendReport
from kvblend.core.rest import Source

__all__ = ["BlendResult", "ChatChunk", "ChatCompletion"]


class BlendResult(BaseModel):
    """The `kvblend` field of an answer: how its context was made, and of which passages."""

    report: BlendReport
    sources: list[Source] = []


class ChatMessage(BaseModel):
    role: str | None = None
    content: str | None = None


class ChatChoice(BaseModel):
    message: ChatMessage
    finish_reason: str | None = None


class ChatUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(BaseModel):
    """One whole answer."""

    id: str
    model: str
    choices: list[ChatChoice]
    usage: ChatUsage | None = None
    kvblend: BlendResult | None = None


class ChunkChoice(BaseModel):
    delta: ChatMessage
    finish_reason: str | None = None


class ChatChunk(BaseModel):
    """A piece of a streamed answer. The last one carries `kvblend`, and may have no choice."""

    id: str
    model: str
    choices: list[ChunkChoice] = []
    usage: ChatUsage | None = None
    kvblend: BlendResult | None = None
