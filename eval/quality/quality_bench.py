"""Quality of every selector, way to encode and ratio, against full prefill and counted FLOPs."""

from collections.abc import Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.progress import Progress

from kvblend.core.errors import InvalidRequestError
from kvblend.eval.quality.bootstrap import Resamples
from kvblend.eval.quality.lab_model import LabModel
from kvblend.eval.quality.orders import ordered
from kvblend.eval.quality.question_lab import QuestionLab
from kvblend.eval.quality.rows import quality_rows
from kvblend.eval.quality.run import (
    all_measured,
    complete_questions,
    measure_question,
    method_keys,
)
from kvblend.eval.quality.state import MethodKey, QualityState
from kvblend.eval.questions.half import Half
from kvblend.eval.questions.mixes import load_mixes
from kvblend.eval.questions.question_set import Question, load_questions, take_half
from kvblend.eval.questions.set_surroundings import with_former, with_similar

__all__ = ["QualitySettings", "quality_bench"]


class QualitySettings(BaseModel):
    """What a measurement depends on besides its question and its method.

    `mix`: ask the set's mixes. `order`: how passages stand in the prompt, of `ORDERS`.
    """

    model_config = ConfigDict(frozen=True)

    questions: Path | None
    mix: bool
    num_passages: int
    passage_tokens: int
    half: Half
    dtype: str
    order: str = "rank"

    @property
    def kept(self) -> dict[str, Any]:
        """As a state keeps them: a file is known by its name, and `order`, which is newer than states, by another."""
        kept = self.model_dump(mode="json", exclude={"order"} if self.order == "rank" else None)
        return kept | {"questions": self.questions and self.questions.name}


def quality_bench(
    model_path: str,
    settings: QualitySettings,
    *,
    methods: Sequence[tuple[str, str]],
    ratios: Sequence[float],
    num_questions: int | None,
    state_path: Path | None,
    only_report: bool = False,
    console: Console,
) -> list[dict[str, Any]]:
    """Measure `methods`, (encode, selector), at every ratio on the questions; resumable where `state_path` is given.

    Returns the rows of `quality_rows`, each with {order, dtype}. The set's last question gives the unrelated warm
    context and is not asked.

    All methods are measured on a question before the next is begun. A run that is interrupted, and one that is to
    measure nothing (`only_report`), gives the rows of the questions that are complete.
    """
    questions = _questions(settings, {encode for encode, _ in methods})
    asked = take_half(questions[:-1], settings.half)[:num_questions]
    keys = method_keys(methods, ratios)
    state = QualityState(state_path, {"model": Path(model_path).name, **settings.kept}, only_read=only_report)
    if not only_report:
        try:
            _measure(model_path, settings, asked, questions[-1], keys, state, console)
        except KeyboardInterrupt:
            console.print("stopped")
    complete = complete_questions(state, keys, range(len(asked)))
    if not complete:
        raise InvalidRequestError(f"none of {len(asked)} questions is complete with {len(keys)} methods")
    if len(complete) < len(asked):
        console.print(f"{len(complete)} of {len(asked)} questions are complete with all {len(keys)} methods")
    measured = all_measured(state, keys, questions=complete)
    rows = quality_rows(measured, Resamples(len(complete)))
    return [row | {"order": settings.order, "dtype": settings.dtype} for row in rows]


def _questions(settings: QualitySettings, encodes: Set[str]) -> list[Question]:
    """The set, with what the encodes need to know of it."""
    if settings.mix and settings.questions is None:
        raise InvalidRequestError("mixes are made of a file in SQuAD's shape", param="mix")
    questions = (
        load_mixes(settings.questions) if settings.mix and settings.questions else load_questions(settings.questions)
    )
    if len(questions) < 3:
        raise InvalidRequestError(f"{len(questions)} questions; at least 3 are needed")
    questions = [ordered(question, settings.order, num_passages=settings.num_passages) for question in questions]
    if "fusionrag" in encodes:
        questions = with_similar(questions)
    if "cachecraft" in encodes:
        questions = with_former(questions)
    return questions


def _measure(
    model_path: str,
    settings: QualitySettings,
    asked: Sequence[Question],
    last: Question,
    keys: Sequence[MethodKey],
    state: QualityState,
    console: Console,
) -> None:
    if len(complete_questions(state, keys, range(len(asked)))) == len(asked):
        return
    model = LabModel(model_path, dtype=settings.dtype, passage_tokens=settings.passage_tokens)
    with Progress(console=console) as progress:
        task = progress.add_task("measurements", total=len(asked) * len(keys))
        for index, question in enumerate(asked):
            for _ in measure_question(index, keys, state, partial(_lab, model, question, last, settings.num_passages)):
                progress.advance(task)


def _lab(model: LabModel, question: Question, last: Question, num_passages: int) -> QuestionLab:
    """The lab of one question; `last` gives the unrelated warm context."""
    passages, related = question.passages[:num_passages], question.passages[num_passages : num_passages + 1]
    return model.lab(
        question.question,
        passages,
        question.answers,
        unrelated=last.passages[0],
        related=related[0] if related else None,
        surroundings=question.surroundings[:num_passages],
    )
