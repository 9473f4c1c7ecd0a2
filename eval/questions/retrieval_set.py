"""Questions with the passages that answer them, among all passages of a set."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from kvblend.core.errors import InvalidRequestError

__all__ = ["RetrievalQuestion", "RetrievalSet", "load_retrieval_set"]


@dataclass(frozen=True)
class RetrievalQuestion:
    """A question, and the numbers of the passages that answer it."""

    question: str
    relevant: frozenset[int]


@dataclass(frozen=True)
class RetrievalSet:
    """Passages' texts, each once, and questions over them."""

    name: str
    passages: tuple[str, ...]
    questions: tuple[RetrievalQuestion, ...]


class _Asked(BaseModel):
    question: str


class _Paragraph(BaseModel):
    context: str
    qas: list[_Asked]


class _Article(BaseModel):
    paragraphs: list[_Paragraph]


class _Squad(BaseModel):
    data: list[_Article]


class _Context(BaseModel):
    text: str


class _Example(BaseModel):
    question: str
    ctxs: list[_Context]
    answers: list[str]


def load_retrieval_set(path: Path) -> RetrievalSet:
    """Read a file in SQuAD's shape, where a paragraph answers its own questions, or in MuSiQue's, where those of a
    question's passages answer it that hold one of its answers; a question that none answers is left out.

    Raises InvalidRequestError where the file cannot be read, or has another shape.
    """
    try:
        read = TypeAdapter(list[_Example] | _Squad).validate_json(path.read_bytes())
    except OSError as error:
        raise InvalidRequestError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise InvalidRequestError(f"{path} has neither MuSiQue's shape nor SQuAD's: {error}") from error
    numbers: dict[str, int] = {}
    questions = []
    if isinstance(read, _Squad):
        for paragraph in (paragraph for article in read.data for paragraph in article.paragraphs):
            number = numbers.setdefault(paragraph.context, len(numbers))
            questions += [RetrievalQuestion(asked.question, frozenset({number})) for asked in paragraph.qas]
    else:
        for example in read:
            own = {each.text: numbers.setdefault(each.text, len(numbers)) for each in example.ctxs if each.text}
            answers = [answer.lower() for answer in example.answers]
            relevant = {number for text, number in own.items() if any(answer in text.lower() for answer in answers)}
            questions.append(RetrievalQuestion(example.question, frozenset(relevant)))
    asked_for = tuple(question for question in questions if question.relevant)
    return RetrievalSet(path.stem, tuple(numbers), asked_for)
