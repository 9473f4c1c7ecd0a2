"""Mixes of a set in SQuAD's shape: prompts in which two of five passages are neighbours in one document."""

import random
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

from kvblend.core.errors import InvalidRequestError
from kvblend.eval.questions.question_set import Article, Question, load_articles

__all__ = ["load_mixes"]

NUM_OTHERS = 3
PLACES = tuple(combinations(range(NUM_OTHERS + 2), 2))
"""Where the two neighbours may stand, in their document's order."""


def load_mixes(path: Path) -> list[Question]:
    """The first question of each paragraph, to be answered from five passages.

    Two are neighbours in one article, in its order, and one of them holds the answer; the others are of three more
    articles. Everything follows from the file. Each half of the questions asks of articles that the other has not, and
    goes through its articles, here at one paragraph and there at another, before it asks of one again. Raises
    InvalidRequestError where a half has fewer than four articles of two paragraphs or more.
    """
    articles = [article for article in load_articles(path) if len(article.passages) > 1]
    middle = len(articles) // 2
    if middle <= NUM_OTHERS:
        raise InvalidRequestError(
            f"{path}: {len(articles)} articles of two paragraphs; mixes need {2 * NUM_OTHERS + 2}"
        )
    first, second = list(_mixes(articles[:middle])), list(_mixes(articles[middle:]))
    # a set's last question is not asked: so many less one have to come before the second half
    size = min(len(first), len(second) - 1)
    return first[:size] + second[: size + 1]


def _mixes(articles: Sequence[Article]) -> Iterator[Question]:
    for turn in range(max(len(article.passages) for article in articles)):
        for number, article in enumerate(articles):
            index = (number + turn) % len(article.passages)  # or the first questions would all ask of first paragraphs
            if turn >= len(article.passages) or (asked := article.questions[index]) is None:
                continue
            others = [other for other in articles if other is not article]
            yield _mix(article, index, others, asked, places=PLACES[(number + 3 * turn) % len(PLACES)])


def _mix(
    article: Article,
    index: int,
    others: Sequence[Article],
    asked: tuple[str, tuple[str, ...]],
    *,
    places: tuple[int, int],
) -> Question:
    """`index`: the paragraph that holds the answer; by chance the first or the second of the neighbours."""
    chance = random.Random(f"{article.title} {index}")
    last = len(article.passages) - 1
    begin = min(index, last - 1) if chance.random() < 0.5 else max(0, index - 1)
    chosen = [(other, chance.randrange(len(other.passages))) for other in chance.sample(others, NUM_OTHERS)]
    for place, neighbour in zip(places, (begin, begin + 1), strict=True):
        chosen.insert(place, (article, neighbour))
    return Question(
        *asked,
        tuple(one.passages[which] for one, which in chosen),
        tuple(one.surroundings(which) for one, which in chosen),
    )
