"""Questions, each with passages: a file in MuSiQue's or SQuAD's shape, or a small set of the project's own."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from kvblend.core.errors import InvalidRequestError
from kvblend.eval.questions.half import Half

__all__ = [
    "SHORT_ANSWER",
    "Article",
    "Question",
    "Surroundings",
    "load_articles",
    "load_questions",
    "take_half",
]

SHORT_ANSWER = "Answer the question using the passages. Answer within 5 words."
"""The instruction with which a set's questions are asked: their gold answers are short."""
OWN_CONTEXTS = 7
EARLY = 4
"""Where what is needed stands: among the first passages, so that it is in a prompt of five."""


@dataclass(frozen=True)
class Surroundings:
    """What belongs to a passage besides its text, empty where the set does not say.

    `preceding`: the passages before it in its own document, in order. `similar`: the passages of the set that are most
    like it, the nearest first. `former`: what stood before it in another question's prompt.
    """

    title: str = ""
    preceding: tuple[str, ...] = ()
    similar: tuple[str, ...] = ()
    former: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """A question, its gold answers, and passages' texts in retrieved order, each with its surroundings."""

    question: str
    answers: tuple[str, ...]
    passages: tuple[str, ...]
    surroundings: tuple[Surroundings, ...]


@dataclass(frozen=True)
class Article:
    """A document of a set in SQuAD's shape: its passages in order, each with its first question, if it has one."""

    title: str
    passages: tuple[str, ...]
    questions: tuple[tuple[str, tuple[str, ...]] | None, ...]

    def surroundings(self, index: int) -> Surroundings:
        """Of the passage at `index`."""
        return Surroundings(self.title, self.passages[:index])


class _Context(BaseModel):
    text: str
    title: str = ""


class _Example(BaseModel):
    question: str
    ctxs: list[_Context]
    answers: list[str] = []


class _SquadAnswer(BaseModel):
    text: str


class _SquadQuestion(BaseModel):
    question: str
    answers: list[_SquadAnswer]


class _SquadParagraph(BaseModel):
    context: str
    qas: list[_SquadQuestion]


class _SquadArticle(BaseModel):
    title: str = ""
    paragraphs: list[_SquadParagraph]


class _SquadSet(BaseModel):
    data: list[_SquadArticle]


class _OwnQuestion(BaseModel):
    question: str
    answers: list[str]
    needs: list[str]


class _OwnSet(BaseModel):
    passages: dict[str, str]
    questions: list[_OwnQuestion]


def load_questions(path: Path | None) -> list[Question]:
    """Read `[{question, answers, ctxs: [{title, text}]}]` or a set in SQuAD's shape; None is the project's own set.

    Raises InvalidRequestError where the file has another shape.
    """
    if path is None:
        return _own_questions()
    try:
        examples = TypeAdapter(list[_Example] | _SquadSet).validate_json(path.read_bytes())
    except ValidationError as error:
        raise InvalidRequestError(f"{path} has neither MuSiQue's shape nor SQuAD's: {error}") from error
    if isinstance(examples, _SquadSet):
        return _squad_questions(_articles(examples))
    questions = []
    for one in examples:
        contexts = [context for context in one.ctxs if context.text]
        surroundings = tuple(Surroundings(context.title) for context in contexts)
        texts = tuple(context.text for context in contexts)
        questions.append(Question(one.question, tuple(one.answers), texts, surroundings))
    return questions


def load_articles(path: Path) -> list[Article]:
    """Read the documents of a set in SQuAD's shape. Raises InvalidRequestError where the file has another."""
    try:
        return _articles(_SquadSet.model_validate_json(path.read_bytes()))
    except ValidationError as error:
        raise InvalidRequestError(f"{path} does not have SQuAD's shape: {error}") from error


def take_half(questions: list[Question], half: Half) -> list[Question]:
    """Settings are chosen on one half and reported on the other."""
    middle = len(questions) // 2
    return {"first": questions[:middle], "second": questions[middle:], "all": questions}[half]


def _articles(squad: _SquadSet) -> list[Article]:
    articles = []
    for article in squad.data:
        articles.append(
            Article(
                article.title.replace("_", " "),
                tuple(paragraph.context for paragraph in article.paragraphs),
                tuple(_asked(paragraph) for paragraph in article.paragraphs),
            )
        )
    return articles


def _asked(paragraph: _SquadParagraph) -> tuple[str, tuple[str, ...]] | None:
    if not paragraph.qas:
        return None
    first = paragraph.qas[0]
    return first.question, tuple(answer.text for answer in first.answers)


def _squad_questions(articles: list[Article]) -> list[Question]:
    """The first question of each paragraph, whose passages are its article's paragraphs; the answer's moves about."""
    questions = []
    for article in articles:
        num_passages = len(article.passages)
        for index, asked in enumerate(article.questions):
            if asked is None:
                continue
            begin = (2 * index) % num_passages
            turned = [(begin + step) % num_passages for step in range(num_passages)]
            passages = tuple(article.passages[place] for place in turned)
            questions.append(Question(*asked, passages, tuple(article.surroundings(place) for place in turned)))
    return questions


def _own_questions() -> list[Question]:
    """Every question gets the passages it needs among others, in an order of its own."""
    own = _OwnSet.model_validate_json(files("kvblend.eval.questions").joinpath("own_questions.json").read_text("utf-8"))
    names = list(own.passages)
    questions = []
    for index, one in enumerate(own.questions):
        turned = [names[(index * 3 + step) % len(names)] for step in range(len(names))]
        chosen = [name for name in turned if name not in one.needs][: OWN_CONTEXTS - len(one.needs)]
        for place, name in enumerate(one.needs):
            chosen.insert((index + 2 * place) % EARLY, name)
        passages = tuple(own.passages[name] for name in chosen)
        questions.append(Question(one.question, tuple(one.answers), passages, (Surroundings(),) * len(passages)))
    return questions
