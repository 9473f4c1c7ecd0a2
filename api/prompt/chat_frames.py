"""Frames of conversations, rendered by vLLM itself: tools, and whatever else a template is told, are its own business.

vLLM renders the messages with a mark where the passages go, and what it gives is cut there. A server that cannot do so
leaves it to the model's own template here; a template of the client's own runs nowhere but in vLLM.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kvblend.api.engine.replicas import Replicas
from kvblend.api.prompt.builder import BEFORE_PASSAGES, BEFORE_QUESTION, Frame, Message, PromptBuilder
from kvblend.api.prompt.sent_messages import is_text_part
from kvblend.api.prompt.template_options import template_kwargs, template_options
from kvblend.api.query_threads import QueryThreads
from kvblend.core.errors import NotFoundError, RefusedByEngineError
from kvblend.retriever.tokenizer import SEPARATOR

__all__ = ["ChatFrames", "messages_with_passages"]

RENDER_FIELDS = (
    "model",
    "tools",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "chat_template_kwargs",
)
"""Fields of a chat request that vLLM's `/tokenize` takes under the same names."""


class ChatFrames:
    """Asks the least busy vLLM server."""

    def __init__(self, replicas: Replicas, prompts: PromptBuilder, threads: QueryThreads) -> None:
        self._replicas = replicas
        self._prompts = prompts
        self._threads = threads

    async def frame(
        self,
        later: Sequence[Message],
        question: str,
        *,
        preamble: str,
        earlier: Sequence[Message],
        fields: Mapping[str, Any],
    ) -> Frame | None:
        """As `PromptBuilder.frame`; `fields` are the chat request's. None where vLLM refuses to render them, or
        does not and they bring a template: why, it says in the words that fit to the request itself. Raises
        InvalidRequestError and EngineUnavailableError."""
        layouts = self._prompts.layouts(later, question, preamble=preamble, earlier=earlier)
        try:
            token_ids = await self._rendered(layouts, fields)
        except RefusedByEngineError:
            return None
        if token_ids is not None:
            frame = await self._threads.run(self._prompts.frame_of, token_ids, recurs=not earlier)
            if frame is not None:
                return frame
        if fields.get("chat_template") is not None:
            return None
        return await self._threads.run(
            self._prompts.frame,
            later,
            question,
            preamble=preamble,
            earlier=earlier,
            template_options=template_options(fields),
        )

    async def _rendered(self, layouts: Sequence[Sequence[Message]], fields: Mapping[str, Any]) -> list[int] | None:
        """The tokens of the first layout that the template takes; None where this server does not render."""
        body = {name: fields[name] for name in RENDER_FIELDS if fields.get(name) is not None}
        if told := template_kwargs(fields):
            body["chat_template_kwargs"] = told
        replica, facts = await self._replicas.choose()
        refusal: RefusedByEngineError | None = None
        for messages in layouts:
            try:
                with replica.request():
                    answer = await replica.engine.post(
                        "/tokenize", {"model": facts.model, **body, "messages": list(messages)}
                    )
            except RefusedByEngineError as error:
                refusal = refusal or error
            except NotFoundError:  # no such route; or no such model, which the request itself will be told
                return None
            else:
                token_ids: list[int] | None = answer.get("tokens")
                return token_ids
        if refusal is None or not self._prompts.has_template:
            return None
        raise refusal


def messages_with_passages(
    messages: Sequence[Message], passages: Sequence[str], *, preamble: str | None, takes_system_message: bool
) -> list[dict[str, Any]]:
    """The messages with the passages' text in the last user message, where they would otherwise stand as tokens.

    `preamble` is the system message that they lack, if any; where the template takes none it is in front of the first
    user message, as in `PromptBuilder.layouts`.
    """
    told = [dict(message) for message in messages]
    users = [index for index, message in enumerate(told) if message.get("role") == "user"]
    passages_text = "".join(passage + SEPARATOR for passage in passages)
    told[users[-1]]["content"] = _after(
        f"{BEFORE_PASSAGES}{passages_text}{BEFORE_QUESTION}", told[users[-1]]["content"]
    )
    if preamble is None:
        return told
    if takes_system_message:
        return [{"role": "system", "content": preamble}, *told]
    told[users[0]]["content"] = _after(f"{preamble}\n\n", told[users[0]]["content"])
    return told


def _after(text: str, content: Any) -> list[Any]:
    """A message's content with a text in front of it."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    if parts and is_text_part(parts[0]):  # of two parts of text vLLM may make two lines
        return [{**parts[0], "text": text + parts[0]["text"]}, *parts[1:]]
    return [{"type": "text", "text": text}, *parts]
