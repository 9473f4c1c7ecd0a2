"""The orders in which a question's passages stand in its prompt.

A new one is a function here and a line in `ORDERS`; `kvblend bench quality --order NAME` asks by it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from kvblend.eval.questions.question_set import Question

__all__ = ["ORDERS", "ordered"]


def _rank(question: Question) -> list[int]:
    return list(range(len(question.passages)))


def _reversed(question: Question) -> list[int]:
    return _rank(question)[::-1]


def _document(question: Question) -> list[int]:
    """Each passage comes with the others of its document, in the document's order, where its first one stood."""
    titles = [around.title or text for around, text in zip(question.surroundings, question.passages, strict=True)]
    places = {title: titles.index(title) for title in titles}
    return sorted(
        _rank(question), key=lambda place: (places[titles[place]], len(question.surroundings[place].preceding))
    )


def _fit(question: Question) -> list[int]:
    """As retrieved, but passages that follow each other in their document stand behind each other."""
    places = _rank(question)
    order: list[int] = []
    for place in places:
        chain = [] if place in order else [place]
        while chain and (before := [one for one in places if _follows(question, chain[0], one)]):
            chain.insert(0, before[0])
        while chain and (behind := [one for one in places if _follows(question, one, chain[-1])]):
            chain.append(behind[0])
        order += chain
    return order


def _follows(question: Question, place: int, before: int) -> bool:
    """Whether the passage at `place` comes right behind that at `before` in their document."""
    preceding = question.surroundings[place].preceding
    return bool(preceding) and preceding[-1] == question.passages[before]


ORDERS: Mapping[str, Callable[[Question], list[int]]] = MappingProxyType(
    {"rank": _rank, "reversed": _reversed, "document": _document, "fit": _fit}
)
"""By name, from a question to the places of its passages in the order of the prompt. `rank`: as retrieved."""


def ordered(question: Question, order: str, *, num_passages: int) -> Question:
    """The question with its first `num_passages` passages, those of its prompt, in this order."""
    size = min(num_passages, len(question.passages))
    prompt = replace(question, passages=question.passages[:size], surroundings=question.surroundings[:size])
    places = [*ORDERS[order](prompt), *range(size, len(question.passages))]
    return replace(
        question,
        passages=tuple(question.passages[place] for place in places),
        surroundings=tuple(question.surroundings[place] for place in places),
    )
