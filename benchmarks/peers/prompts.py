"""The requests that other projects' tools send: passages of a pool, in orders of their own, and a question."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from kvblend.eval.corpus import MODULES, module_document

__all__ = ["Question", "pool", "questions"]

PASSAGE_CHARACTERS = 800
"""Under the 256 tokens of a passage, so that a document is one passage."""


@dataclass(frozen=True)
class Question:
    """What one request asks of which documents."""

    documents: tuple[str, ...]
    text: str

    @property
    def pasted(self) -> str:
        """The documents and the question as one prompt."""
        return "\n\n".join([*self.documents, self.text])


def pool(size: int) -> list[str]:
    """Documents: pieces of the documentation of Python's library."""
    text = "\n\n".join(module_document(name) for name in MODULES)
    starts = range(0, size * PASSAGE_CHARACTERS, PASSAGE_CHARACTERS)
    return [text[start : start + PASSAGE_CHARACTERS].strip() for start in starts]


def questions(documents: Sequence[str], number: int, *, of_each: int, seed: str) -> list[Question]:
    """So many, each over `of_each` documents; another seed has others, for which no prefix of these is cached."""
    chance = random.Random(seed)
    return [
        Question(
            tuple(chance.sample(documents, of_each)), f"Question {seed} {index}: what do these passages have in common?"
        )
        for index in range(number)
    ]
