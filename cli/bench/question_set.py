"""Questions, each with passages: a file in MuSiQue's or SQuAD's shape, or a small set of the project's own."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, TypeAdapter, ValidationError

from kvblend.core.errors import InvalidRequestError

__all__ = ["SHORT_ANSWER", "Half", "Question", "load_questions", "take_half"]

Half = Literal["first", "second", "all"]
SHORT_ANSWER = "Answer the question using the passages. Answer within 5 words."
"""The instruction with which a set's questions are asked: their gold answers are short."""
OWN_CONTEXTS = 7
EARLY = 4
"""Where what is needed stands: among the first passages, so that it is in a prompt of five."""


@dataclass(frozen=True)
class Question:
    """A question, its gold answers, and passages' texts in retrieved order."""

    question: str
    answers: tuple[str, ...]
    passages: tuple[str, ...]


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
        return _squad_questions(examples)
    return [
        Question(one.question, tuple(one.answers), tuple(ctx.text for ctx in one.ctxs if ctx.text)) for one in examples
    ]


def take_half(questions: list[Question], half: Half) -> list[Question]:
    """Settings are chosen on one half and reported on the other."""
    middle = len(questions) // 2
    return {"first": questions[:middle], "second": questions[middle:], "all": questions}[half]


def _squad_questions(squad: _SquadSet) -> list[Question]:
    """The first question of each paragraph, whose passages are its article's paragraphs; the answer's moves about."""
    questions = []
    for article in squad.data:
        texts = [paragraph.context for paragraph in article.paragraphs]
        for index, paragraph in enumerate(article.paragraphs):
            if not paragraph.qas:
                continue
            first = paragraph.qas[0]
            begin = (2 * index) % len(texts)
            turned = tuple(texts[begin:] + texts[:begin])
            questions.append(Question(first.question, tuple(answer.text for answer in first.answers), turned))
    return questions


def _own_questions() -> list[Question]:
    """Every question gets the passages it needs among others, in an order of its own."""
    own = _OwnSet.model_validate_json(files("kvblend.cli.bench").joinpath("own_questions.json").read_text("utf-8"))
    names = list(own.passages)
    questions = []
    for index, one in enumerate(own.questions):
        turned = [names[(index * 3 + step) % len(names)] for step in range(len(names))]
        chosen = [name for name in turned if name not in one.needs][: OWN_CONTEXTS - len(one.needs)]
        for place, name in enumerate(one.needs):
            chosen.insert((index + 2 * place) % EARLY, name)
        questions.append(Question(one.question, tuple(one.answers), tuple(own.passages[name] for name in chosen)))
    return questions
