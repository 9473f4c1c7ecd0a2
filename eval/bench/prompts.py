"""The benchmarks' prompts, laid out as the service lays out its own."""

from collections.abc import Sequence
from typing import Any

from kvblend.api.prompt.builder import DEFAULT_PREAMBLE, PromptBuilder

__all__ = ["BenchPrompts"]


class BenchPrompts:
    """Prompts on the model's own chat template, with its BOS token; plain text for a model that has none.

    `instruction` is the system message, or opens the user's where the template takes no system message. `tokenizer` is
    the model's.
    """

    def __init__(self, tokenizer: Any, instruction: str = DEFAULT_PREAMBLE) -> None:
        self._builder, self._instruction = PromptBuilder(tokenizer), instruction
        self.preamble = list(self._builder.preamble_ids(instruction))

    def passage(self, text: str, num_tokens: int) -> list[int]:
        """A text's first `num_tokens` tokens, ended as a passage ends."""
        return list(self._builder.cut_passage_ids(text, num_tokens))

    def question(self, text: str) -> list[int]:
        """All that follows the last passage."""
        return list(self._builder.frame([], text, preamble=self._instruction).question_ids)

    def prompt(self, passages: Sequence[Sequence[int]], question: Sequence[int]) -> list[int]:
        return [*self.preamble, *(token for passage in passages for token in passage), *question]
