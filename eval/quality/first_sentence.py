"""The part of an answer that is judged: behind it a small model says whatever comes next in the text."""

import re

from kvblend.eval.quality.answer_f1 import answer_words

__all__ = ["first_sentence"]

SENTENCE_END = re.compile(r"(?<=[.!?])\s|\n")


def first_sentence(answer: str) -> list[str]:
    """The words of an answer's first sentence that count, as F1 counts them."""
    return answer_words(SENTENCE_END.split(answer.strip(), maxsplit=1)[0])
