"""Quality of every selector, way to encode and ratio, against full prefill and counted FLOPs."""

import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.console import Console

from kvblend.cli.bench.bootstrap import Resamples
from kvblend.cli.bench.lab_model import LabModel
from kvblend.cli.bench.quality_lab import Measurement, QuestionLab
from kvblend.cli.bench.quality_run import all_measured, measure_question, method_keys
from kvblend.cli.bench.quality_state import MethodKey, QualityState
from kvblend.cli.bench.question_set import Half, Question, load_questions, take_half
from kvblend.cli.progress import count_progress
from kvblend.core.errors import InvalidRequestError

__all__ = ["BASELINE", "QualitySettings", "quality_bench"]

BASELINE = ("alone", "cacheblend_v")
"""What `kl_fraction` is a fraction of, at the same recompute ratio."""


class QualitySettings(BaseModel):
    """What a measurement depends on besides its question and its method."""

    model_config = ConfigDict(frozen=True)

    questions: Path | None
    num_passages: int
    passage_tokens: int
    half: Half
    dtype: str


def quality_bench(
    model_path: str,
    settings: QualitySettings,
    *,
    methods: Sequence[tuple[str, str]],
    ratios: Sequence[float],
    num_questions: int | None,
    state_path: Path | None,
    console: Console,
) -> list[dict[str, Any]]:
    """Measure `methods`, (encode, selector), at every ratio on the questions; resumable where `state_path` is given.

    Returns rows {selector, encode, recompute_ratio, flops_ratio, num_questions, kl, kl_ci95, agreement, f1,
    kl_fraction, kl_fraction_ci95, dtype}, means over questions; the first is full prefill itself. `kl_fraction` is the
    KL as a fraction of CacheBlend's (values of layer 1, exact mask, passages alone) at the same ratio. The set's last
    question gives the unrelated warm context and is not asked.
    """
    questions = load_questions(settings.questions)
    if len(questions) < 3:
        raise InvalidRequestError(f"{len(questions)} questions; at least 3 are needed")
    asked = take_half(questions[:-1], settings.half)[:num_questions]
    keys = method_keys(methods, ratios)
    kept = {"model": Path(model_path).name, **settings.model_dump(mode="json")}
    state = QualityState(state_path, kept | {"questions": settings.questions and settings.questions.name})
    model = LabModel(model_path, dtype=settings.dtype, passage_tokens=settings.passage_tokens)
    with count_progress(console) as progress:
        task = progress.add_task("measurements", total=len(asked) * len(keys))
        for index, question in enumerate(asked):
            for _ in measure_question(
                index, keys, state, partial(_lab, model, question, questions[-1], settings.num_passages)
            ):
                progress.advance(task)
    measured = all_measured(state, keys, questions=range(len(asked)))
    return [row | {"dtype": settings.dtype} for row in _rows(measured, Resamples(len(asked)))]


def _lab(model: LabModel, question: Question, last: Question, num_passages: int) -> QuestionLab:
    """The lab of one question; `last` gives the unrelated warm context."""
    passages, related = question.passages[:num_passages], question.passages[num_passages : num_passages + 1]
    return model.lab(
        question.question,
        passages,
        question.answers,
        unrelated=last.passages[0],
        related=related[0] if related else None,
    )


def _rows(measured: dict[MethodKey, list[Measurement]], resamples: Resamples) -> Iterator[dict[str, Any]]:
    for key, measurements in measured.items():
        kl = [one.kl for one in measurements]
        baseline = measured.get(MethodKey(*BASELINE, key.recompute_ratio))
        row: dict[str, Any] = {
            "selector": key.selector,
            "encode": key.encode or None,
            "recompute_ratio": key.recompute_ratio,
            "flops_ratio": statistics.fmean(one.flops_ratio for one in measurements),
            "num_questions": len(measurements),
            "kl": statistics.fmean(kl),
            "kl_ci95": resamples.mean_ci95(kl),
            "agreement": statistics.fmean(one.agreement for one in measurements),
            "f1": statistics.fmean(one.f1 for one in measurements),
            "kl_fraction": None,
            "kl_fraction_ci95": None,
        }
        if baseline is not None and key.encode:
            theirs = [one.kl for one in baseline]
            row["kl_fraction"] = statistics.fmean(kl) / statistics.fmean(theirs)
            row["kl_fraction_ci95"] = resamples.ratio_ci95(kl, theirs)
        yield row
