"""Text for a trace's passages: slices of the documentation of Python's library, as long as the trace says."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from kvblend.eval import corpus
from kvblend.eval.bench import passages

__all__ = ["PassageTexts", "bystander_text", "chars_per_token", "library_text"]

STRIDE = 7919
"""Characters between the slices of two passages whose ids follow each other: a prime, so that few begin alike."""


@cache
def library_text() -> str:
    """The documentation of the demo's modules and of those that the other benchmarks read; the same every time."""
    names = dict.fromkeys([*corpus.MODULES, *passages.MODULES])
    return "\n\n".join(map(corpus.module_document, names)) + "\n"


def chars_per_token(tokenizer: Any) -> float:
    """Characters of the library's documentation that one token of the model stands for, on average."""
    text = library_text()
    return len(text) / len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


class PassageTexts:
    """From a passage's id to its text, of about `passage_tokens[id] * scale` tokens; always the same one."""

    def __init__(self, passage_tokens: Mapping[int, int], *, scale: float, chars_per_token: float) -> None:
        self._num_chars = {
            passage: round(num_tokens * scale * chars_per_token) for passage, num_tokens in passage_tokens.items()
        }
        self._twice = library_text() * 2

    def text(self, passage: int, *, edition: int = 0) -> str:
        """A heading that names the passage, then its slice. Another `edition` is another passage of the same length."""
        heading = f"## Passage {passage}, edition {edition}\n\n"
        start = passage * STRIDE % (len(self._twice) // 2)
        return heading + self._twice[start : start + max(0, self._num_chars[passage] - len(heading))]


def bystander_text(number: int, *, chars_per_token: float) -> str:
    """What a plain request asks while others are measured: about 100 tokens."""
    start = number * STRIDE % (len(library_text()) // 2)
    return f"Go on with text {number}:\n\n" + library_text()[start : start + round(90 * chars_per_token)]
