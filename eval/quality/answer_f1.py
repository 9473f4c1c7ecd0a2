"""F1 of an answer by SQuAD's rules."""

import re
import string
from collections import Counter
from collections.abc import Sequence

__all__ = ["answer_f1", "answer_words"]

PUNCTUATION = str.maketrans("", "", string.punctuation)


def answer_f1(answer: str, gold: Sequence[str]) -> float:
    """The best F1 over words of `answer` with one of the gold answers.

    Lower case, no punctuation, no articles (Rajpurkar et al., arXiv 1606.05250).
    """
    return max((_f1(answer_words(answer), answer_words(one)) for one in gold), default=0.0)


def answer_words(text: str) -> list[str]:
    """The words of a text that count: lower case, no punctuation, no articles."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(PUNCTUATION)).split()


def _f1(answer: list[str], gold: list[str]) -> float:
    if not answer or not gold:
        return float(answer == gold)
    shared = (Counter(answer) & Counter(gold)).total()
    return 2 * shared / (len(answer) + len(gold))
