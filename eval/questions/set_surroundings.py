"""What a set's other questions and passages say of a passage: which are like it, and what once stood before it."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kvblend.eval.questions.question_set import Question

__all__ = ["with_former", "with_similar"]

MAX_SIMILAR = 4


def with_similar(questions: Sequence[Question]) -> list[Question]:
    """The questions, of each passage the set's passages whose words are most like its own (cosine of tf-idf)."""
    texts = list(dict.fromkeys(text for question in questions for text in question.passages))
    vectors = _tf_idf(texts)
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -1.0)
    nearest = np.argsort(-likeness, axis=1, kind="stable")[:, :MAX_SIMILAR]
    similar = {text: tuple(texts[other] for other in nearest[row]) for row, text in enumerate(texts)}
    return [
        replace(
            question,
            surroundings=tuple(
                replace(one, similar=similar[text])
                for text, one in zip(question.passages, question.surroundings, strict=True)
            ),
        )
        for question in questions
    ]


def with_former(questions: Sequence[Question]) -> list[Question]:
    """The questions, of each passage what stood before it in the prompt of another question.

    Of several, the one that shares most text with what stands before it now; nothing where no other question has it.
    """
    prompts: dict[str, list[tuple[int, tuple[str, ...]]]] = {}
    for number, question in enumerate(questions):
        for place, text in enumerate(question.passages):
            prompts.setdefault(text, []).append((number, question.passages[:place]))
    asked = []
    for number, question in enumerate(questions):
        surroundings = []
        for place, text in enumerate(question.passages):
            now = set(question.passages[:place])
            others = [before for other, before in prompts[text] if other != number]
            former = max(others, key=lambda before: sum(len(one) for one in before if one in now), default=())
            surroundings.append(replace(question.surroundings[place], former=former))
        asked.append(replace(question, surroundings=tuple(surroundings)))
    return asked


def _tf_idf(texts: Sequence[str]) -> np.ndarray:
    """Unit vectors `[text, word]`, fp32."""
    counts = [Counter(re.findall(r"\w+", text.lower())) for text in texts]
    holders = Counter(word for one in counts for word in one)
    columns = {word: column for column, word in enumerate(holders)}
    vectors = np.zeros((len(texts), len(columns)), dtype=np.float32)
    for row, one in enumerate(counts):
        for word, count in one.items():
            vectors[row, columns[word]] = (1 + np.log(count)) * np.log(len(texts) / holders[word])
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: np.ndarray = vectors / np.where(norms > 0, norms, 1)
    return unit
