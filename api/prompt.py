"""Lay out prompts on the model's own chat template.

    [preamble                                         ][passage]...[passage][question                          ]
     template, system message, start of the user turn,                       question, end of turn, the template's
     "Passages:"                                                             start of an answer

Each part is tokenized alone and the ids are concatenated, so that no part's tokens depend on its neighbours. The
template is rendered with a mark where the passages go, and cut there.
"""

import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer

from kvblend.core.errors import InvalidRequestError
from kvblend.retriever.tokenizer import SEPARATOR, PassageTokenizer, encode_alone

__all__ = ["DEFAULT_PREAMBLE", "Frame", "PromptBuilder"]

DEFAULT_PREAMBLE = (
    "You answer questions from the passages that you are given. Answer in one or two short sentences, "
    "with what the passages say and nothing else."
)
BEFORE_PASSAGES = "Passages:\n\n"
BEFORE_QUESTION = "Question: "
MARK = f"kvblend{uuid.uuid4().hex}"

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Frame:
    """The tokens around a prompt's passages."""

    preamble_ids: tuple[int, ...]
    question_ids: tuple[int, ...]
    recurs: bool = True
    """Whether other prompts begin as this one, so that its preamble's KV is worth keeping."""


class PromptBuilder:
    """Turns messages and passages into token ids. `tokenizer` is the model's, a transformers one; thread-safe."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._passages = PassageTokenizer(tokenizer)
        self._texts = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._texts.no_padding()
        self._texts.no_truncation()
        self._lock = threading.Lock()
        first = tokenizer("a")["input_ids"][:1]
        starts_with_bos = tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]
        self._bos = tokenizer.bos_token if starts_with_bos else ""
        self.fingerprint: str = self._passages.fingerprint
        """Names the tokenizer: two with the same one give the same tokens."""

    def text_ids(self, text: str) -> tuple[int, ...]:
        """The tokens of a text alone, nothing added; what looks like a control token in it is one."""
        return tuple(encode_alone(self._texts, text))

    def passage_ids(self, text: str) -> tuple[int, ...]:
        """The tokens of a passage, as the retriever's splitter makes them."""
        return tuple(self._passages.encode_passage(text))

    def cut_passage_ids(self, text: str, num_tokens: int) -> tuple[int, ...]:
        """A text's first `num_tokens` tokens, ended as a passage ends."""
        return (*self.text_ids(text)[:num_tokens], *self.text_ids(SEPARATOR))

    def raw_frame(self, question: str | Sequence[int]) -> Frame:
        """The frame of a text completion: no template, the caller's own text or tokens after the passages."""
        ids = self.text_ids(question) if isinstance(question, str) else tuple(question)
        return Frame(self.text_ids(self._bos + BEFORE_PASSAGES), ids)

    def preamble_ids(self, preamble: str) -> tuple[int, ...]:
        """The tokens in front of the first passage where `preamble` is the system message."""
        return self.frame([], "", preamble=preamble).preamble_ids

    def frame(
        self,
        later: Sequence[Message],
        question: str,
        *,
        preamble: str,
        earlier: Sequence[Message] = (),
        template_options: Mapping[str, Any] | None = None,
    ) -> Frame:
        """The frame of a conversation: the passages stand at the start of the user message `question`.

        `earlier` turns are part of the preamble, which nothing blended precedes: vLLM's prefix cache has it from the
        turn before. Everything from the question on counts as the question, what came `later` too. Raises
        InvalidRequestError where the template refuses the messages.
        """
        content = f"{BEFORE_PASSAGES}{MARK}{BEFORE_QUESTION}{question}"
        rendered = self._render(preamble, earlier, content, later, template_options or {})
        before, mark, after = rendered.partition(MARK)
        if not mark or MARK in after:
            raise InvalidRequestError("the model's chat template does not give the user's message once and whole")
        return Frame(self.text_ids(before), self.text_ids(after), recurs=not earlier)

    def _render(
        self,
        preamble: str,
        earlier: Sequence[Message],
        content: str,
        later: Sequence[Message],
        options: Mapping[str, Any],
    ) -> str:
        turns = [*earlier, {"role": "user", "content": content}, *later]
        if self._tokenizer.chat_template is None:
            return self._bos + _plain_layout(preamble, turns)
        try:
            return self._apply_template([{"role": "system", "content": preamble}, *turns], options)
        except TemplateError:  # some templates take no system message: it opens the first user's then
            first = next(index for index, turn in enumerate(turns) if turn["role"] == "user")
            turns[first] = {**turns[first], "content": f"{preamble}\n\n{turns[first]['content']}"}
        try:
            return self._apply_template(turns, options)
        except TemplateError as error:
            raise InvalidRequestError(f"the model's chat template refuses the messages: {error}") from error

    def _apply_template(self, conversation: Sequence[Message], options: Mapping[str, Any]) -> str:
        with self._lock:
            rendered: str = self._tokenizer.apply_chat_template(
                [dict(message) for message in conversation], tokenize=False, add_generation_prompt=True, **options
            )
        return rendered


def _plain_layout(preamble: str, turns: Sequence[Message]) -> str:
    """A layout for models without a chat template; the user message with the passages names its question itself."""
    told = "".join(f"\n\n{_label(turn)}{turn['content']}" for turn in turns)
    return f"{preamble}{told}\n\nAnswer:"


def _label(turn: Message) -> str:
    if turn["role"] == "assistant":
        return "Answer: "
    return "" if MARK in turn["content"] else "Question: "
