"""Whether answers that need one fact or two among real text are full prefill's, by selector and way to encode."""

import re
import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.progress import Progress

from kvblend.eval.needles.cases import KINDS, NeedleCase, NeedleCases
from kvblend.eval.quality.bootstrap import Resamples
from kvblend.eval.quality.first_sentence import first_sentence
from kvblend.eval.quality.lab_model import LabModel
from kvblend.eval.quality.question_lab import Measurement, QuestionLab
from kvblend.eval.quality.run import FULL_PREFILL, all_measured, measure_question, method_keys
from kvblend.eval.quality.state import MethodKey, QualityState
from kvblend.eval.questions.question_set import load_questions

__all__ = ["NeedleSettings", "needle_bench"]

ANSWER_TOKENS = 32
"""A small model repeats the question before it comes to the codes."""


class NeedleSettings(BaseModel):
    """What a measurement depends on besides its case's number and its method."""

    model_config = ConfigDict(frozen=True)

    text: Path | None
    num_passages: int
    passage_tokens: int
    seed: int
    dtype: str


def needle_bench(
    model_path: str,
    settings: NeedleSettings,
    *,
    num_cases: int,
    kinds: Sequence[str],
    encodes: Sequence[str],
    selectors: Sequence[str],
    ratios: Sequence[float],
    state_path: Path | None,
    console: Console,
) -> list[dict[str, Any]]:
    """Measure every method on those of the cases that are of `kinds`; resumable, with more too, by `state_path`.

    Returns for each method rows {selector, encode, recompute_ratio, kind, flops_ratio, num_cases, same_answer,
    same_answer_ci95, same_facts, same_facts_ci95, correct, correct_ci95, kl, kl_ci95, num_answered, kept, agreement,
    dtype},
    for each kind of case and for `all`; full prefill's come first. `same_answer`: share of greedy answers whose first
    sentence has full prefill's words; `same_facts`: that name the same of the planted codes; `correct`: that name what
    was asked for and no other; `kept`: correct ones among the `num_answered` that full prefill answers correctly.
    """
    keys = method_keys(list(product(encodes, selectors)), ratios)
    kept = {"model": Path(model_path).name, **settings.model_dump(mode="json")}
    state = QualityState(state_path, kept | {"text": settings.text and settings.text.name})
    model = LabModel(model_path, dtype=settings.dtype, passage_tokens=settings.passage_tokens)
    generated = _cases(model, settings)
    cases = {index: case for index, case in enumerate(generated.take(num_cases)) if case.kind in kinds}
    with Progress(console=console) as progress:
        task = progress.add_task("measurements", total=len(cases) * len(keys))
        for index, case in cases.items():
            for _ in measure_question(index, keys, state, partial(_lab, model, case, generated.unrelated)):
                progress.advance(task)
    rows = _rows(list(cases.values()), all_measured(state, keys, questions=list(cases)))
    return [row | {"dtype": settings.dtype} for row in rows]


def _cases(model: LabModel, settings: NeedleSettings) -> NeedleCases:
    questions = load_questions(settings.text)
    return NeedleCases(
        list(dict.fromkeys(text for question in questions for text in question.passages)),
        model.prompts.text_ids,
        model.tokenizer.decode,
        num_passages=settings.num_passages,
        passage_tokens=settings.passage_tokens,
        seed=settings.seed,
    )


def _lab(model: LabModel, case: NeedleCase, unrelated: str) -> QuestionLab:
    return model.lab(
        case.question, case.passages, [" ".join(case.gold)], unrelated=unrelated, answer_tokens=ANSWER_TOKENS
    )


def _rows(cases: Sequence[NeedleCase], measured: dict[MethodKey, list[Measurement]]) -> Iterator[dict[str, Any]]:
    full = measured[FULL_PREFILL]
    for kind in ("all", *KINDS):
        chosen = [index for index, case in enumerate(cases) if kind in ("all", case.kind)]
        if not chosen:
            continue
        resamples = Resamples(len(chosen))
        for key, measurements in measured.items():
            ours = [(cases[index], measurements[index], full[index]) for index in chosen]
            yield _row(key, kind, ours, resamples)


def _row(
    key: MethodKey, kind: str, ours: Sequence[tuple[NeedleCase, Measurement, Measurement]], resamples: Resamples
) -> dict[str, Any]:
    """`ours`: each case with this method's measurement and full prefill's."""
    named = [(_named(case, one), _named(case, full)) for case, one, full in ours]
    measures = {
        "same_answer": [float(first_sentence(one.answer) == first_sentence(full.answer)) for _, one, full in ours],
        "same_facts": [float(one == full) for one, full in named],
        "correct": [float(one == set(case.gold)) for (one, _), (case, _, _) in zip(named, ours, strict=True)],
        "kl": [one.kl for _, one, _ in ours],
    }
    answered = [full == set(case.gold) for (_, full), (case, _, _) in zip(named, ours, strict=True)]
    right = [correct for correct, known in zip(measures["correct"], answered, strict=True) if known]
    row: dict[str, Any] = {
        **key._asdict(),
        "encode": key.encode or None,
        "kind": kind,
        "flops_ratio": statistics.fmean(one.flops_ratio for _, one, _ in ours),
        "num_cases": len(ours),
    }
    for name, values in measures.items():
        row |= {name: statistics.fmean(values), f"{name}_ci95": resamples.mean_ci95(values)}
    return row | {
        "num_answered": len(right),
        "kept": statistics.fmean(right) if right else None,
        "agreement": statistics.fmean(one.agreement for _, one, _ in ours),
    }


def _named(case: NeedleCase, measurement: Measurement) -> set[str]:
    """The planted codes that an answer names."""
    return set(case.planted) & set(re.findall(r"\d+", measurement.answer))
