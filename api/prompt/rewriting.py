"""Make a question that leans on a conversation stand alone, so that it can be searched for."""

from collections.abc import Sequence

from kvblend.api.access.engine_fields import engine_fields
from kvblend.api.engine.replicas import Replicas
from kvblend.core.rest import HistoryMessage

__all__ = ["rewrite_question"]

MAX_TOKENS = 96
ORDER = (
    "Rewrite the last question of the conversation so that it can be understood without the conversation: put names in "
    "place of words that point back. Answer with the question alone. If it stands alone already, repeat it."
)
LABELS = {"user": "User", "assistant": "Assistant"}


async def rewrite_question(
    replicas: Replicas, history: Sequence[HistoryMessage], question: str, *, salt: str | None = None
) -> str:
    """Have vLLM rewrite a question, greedily; as it is, where there is no history or nothing comes of it.

    `salt`: of the tenant, for vLLM's prefix cache. Raises what `EngineClient` raises.
    """
    if not history:
        return question
    turns = [f"{LABELS[message.role]}: {message.content}" for message in history]
    told = "\n".join([*turns, f"Last question: {question}"])
    messages = [{"role": "system", "content": ORDER}, {"role": "user", "content": told}]
    body = {"messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0.0}
    answer = await replicas.answer("/v1/chat/completions", engine_fields(body, salt=salt))
    return (answer["choices"][0]["message"].get("content") or "").strip() or question
