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
UNFINISHED, MOST_BYTES = "\N{REPLACEMENT CHARACTER}", 4
"""How a character's first bytes read, and how many bytes one takes."""
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
        self.has_template = tokenizer.chat_template is not None
        self.takes_system_message = self._takes_system_message()
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

    def token_texts(self, token_ids: Sequence[int]) -> list[str]:
        """Each token's own text; a character that takes several tokens stands at its last one."""
        texts, waiting = [], list[int]()
        for token_id in token_ids:
            waiting.append(token_id)
            text = self._texts.decode(waiting, skip_special_tokens=False)
            whole = not text.endswith(UNFINISHED) or len(waiting) == MOST_BYTES
            texts.append(text if whole else "")
            if whole:
                waiting.clear()
        return texts

    def prompt_ids(self, prompt: str) -> tuple[int, ...]:
        """The tokens that vLLM makes of a completion's prompt, with what the model's tokenizer adds to any text."""
        return tuple(self._texts.encode_batch_fast([prompt], add_special_tokens=True)[0].ids)

    def chat_ids(self, messages: Sequence[Message], options: Mapping[str, Any]) -> tuple[int, ...]:
        """The tokens that vLLM makes of a conversation by the model's template; `options` are the template's.

        Raises InvalidRequestError where it refuses the messages or options, or where there is none.
        """
        if not self.has_template:
            raise InvalidRequestError("the model has no chat template", param="messages")
        return self.text_ids(self._render([messages], "", options))

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
        layouts = self.layouts(later, question, preamble=preamble, earlier=earlier)
        return self._cut(self._render(layouts, preamble, template_options or {}), recurs=not earlier)

    def layouts(
        self, later: Sequence[Message], question: str, *, preamble: str, earlier: Sequence[Message] = ()
    ) -> list[list[Message]]:
        """The messages of a conversation with a mark where the passages go: with a system message, and for templates
        that take none, with the preamble in front of the first user's."""
        content = f"{BEFORE_PASSAGES}{MARK}{BEFORE_QUESTION}{question}"
        turns = [*earlier, {"role": "user", "content": content}, *later]
        folded = list(turns)
        first = next(index for index, turn in enumerate(turns) if turn["role"] == "user")
        folded[first] = {**turns[first], "content": f"{preamble}\n\n{turns[first]['content']}"}
        return [[{"role": "system", "content": preamble}, *turns], folded]

    def frame_of(self, token_ids: Sequence[int], *, recurs: bool) -> Frame | None:
        """The frame of such messages that somebody else has rendered to tokens; None where these are not the tokens of
        their own text. Raises InvalidRequestError as `frame` does."""
        rendered = self._texts.decode(list(token_ids), skip_special_tokens=False)
        return self._cut(rendered, recurs=recurs) if self.text_ids(rendered) == tuple(token_ids) else None

    def _cut(self, rendered: str, *, recurs: bool) -> Frame:
        before, mark, after = rendered.partition(MARK)
        if not mark or MARK in after:
            raise InvalidRequestError("the model's chat template does not give the user's message once and whole")
        return Frame(self.text_ids(before), self.text_ids(after), recurs=recurs)

    def _render(self, layouts: Sequence[Sequence[Message]], preamble: str, options: Mapping[str, Any]) -> str:
        if not self.has_template:
            return self._bos + _plain_layout(preamble, layouts[0][1:])
        failure: Exception | None = None
        for messages in layouts:
            try:
                return self._apply_template(messages, options)
            except Exception as error:  # a template is a program, and raises what it likes
                failure = error
        raise InvalidRequestError(f"the model's chat template refuses the messages: {failure}") from failure

    def _takes_system_message(self) -> bool:
        if not self.has_template:
            return True
        try:
            self._apply_template([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], {})
        except Exception:  # as above
            return False
        return True

    def _apply_template(self, conversation: Sequence[Message], options: Mapping[str, Any]) -> str:
        options = {"add_generation_prompt": True, **options, "chat_template": None, "tokenize": False}
        with self._lock:
            rendered: str = self._tokenizer.apply_chat_template([dict(message) for message in conversation], **options)
        return rendered


def _plain_layout(preamble: str, turns: Sequence[Message]) -> str:
    """A layout for models without a chat template; the user message with the passages names its question itself."""
    told = "".join(f"\n\n{_label(turn)}{turn['content']}" for turn in turns)
    return f"{preamble}{told}\n\nAnswer:"


def _label(turn: Message) -> str:
    if turn["role"] == "assistant":
        return "Answer: "
    return "" if MARK in turn["content"] else "Question: "
