"""Whether answers that need one fact or two among real text are full prefill's, by selector and way to encode."""

import re
import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from rich.console import Console

from kvblend.api.encode_context import default_warm_context
from kvblend.api.prompt import PromptBuilder
from kvblend.blend.hf import HuggingFaceModel
from kvblend.cli.bench.answer_f1 import answer_words
from kvblend.cli.bench.bootstrap import Resamples
from kvblend.cli.bench.needle_cases import KINDS, NeedleCase, NeedleCases
from kvblend.cli.bench.quality_encodes import PromptParts
from kvblend.cli.bench.quality_lab import Measurement, QuestionLab, make_encoders
from kvblend.cli.bench.quality_run import FULL_PREFILL, all_measured, measure_question, method_keys
from kvblend.cli.bench.quality_state import MethodKey, QualityState
from kvblend.cli.bench.question_set import load_questions
from kvblend.cli.progress import count_progress

__all__ = ["NeedleSettings", "needle_bench"]

PREAMBLE = "Answer the question using the passages. Answer within 5 words."
SEPARATOR = "\n\n"
SENTENCE_END = re.compile(r"(?<=[.!?])\s|\n")
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
    same_answer_ci95, same_facts, same_facts_ci95, correct, correct_ci95, num_answered, kept, agreement, kl, kl_ci95},
    for each kind of case and for `all`; full prefill's come first. `same_answer`: share of greedy answers whose first
    sentence has full prefill's words; `same_facts`: that name the same of the planted codes; `correct`: that name what
    was asked for and no other; `kept`: correct ones among the `num_answered` that full prefill answers correctly.
    """
    keys = method_keys(encodes, selectors, ratios)
    kept = {"model": Path(model_path).name, **settings.model_dump(mode="json")}
    state = QualityState(state_path, kept | {"text": settings.text and settings.text.name})
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    bench = _Bench(HuggingFaceModel.load(model_path, dtype=getattr(torch, settings.dtype)), tokenizer, settings)
    cases = {index: case for index, case in enumerate(bench.cases.take(num_cases)) if case.kind in kinds}
    with count_progress(console) as progress:
        task = progress.add_task("measurements", total=len(cases) * len(keys))
        for index, case in cases.items():
            for _ in measure_question(index, keys, state, partial(bench.lab, case)):
                progress.advance(task)
    return list(_rows(list(cases.values()), all_measured(state, keys, questions=list(cases))))


class _Bench:
    def __init__(self, model: HuggingFaceModel, tokenizer: Any, settings: NeedleSettings) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._prompts = PromptBuilder(tokenizer)
        self._passage_tokens = settings.passage_tokens
        self._separator = self._prompts.text_ids(SEPARATOR)
        self._neutral = self._prompts.passage_ids(default_warm_context())
        self._encoders = make_encoders(model)
        self._end_tokens = model.end_tokens | {tokenizer.eos_token_id}
        questions = load_questions(settings.text)
        self.cases = NeedleCases(
            list(dict.fromkeys(text for question in questions for text in question.passages)),
            self._prompts.text_ids,
            tokenizer.decode,
            num_passages=settings.num_passages,
            passage_tokens=settings.passage_tokens,
            seed=settings.seed,
        )

    def lab(self, case: NeedleCase) -> QuestionLab:
        frame = self._prompts.frame([], case.question, preamble=PREAMBLE)
        parts = PromptParts(
            preamble=frame.preamble_ids,
            passages=tuple(self._passage(text) for text in case.passages),
            question=frame.question_ids,
            unrelated=self._passage(self.cases.unrelated),
            related=(),
            neutral=self._neutral,
        )
        return QuestionLab(
            self._model,
            self._tokenizer,
            self._encoders,
            parts,
            [" ".join(case.gold)],
            end_tokens=self._end_tokens,
            answer_tokens=ANSWER_TOKENS,
        )

    def _passage(self, text: str) -> tuple[int, ...]:
        return self._prompts.text_ids(text)[: self._passage_tokens] + self._separator


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
        "same_answer": [float(_answer(one) == _answer(full)) for _, one, full in ours],
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


def _answer(measurement: Measurement) -> list[str]:
    """The words of an answer's first sentence: behind it a small model says whatever comes next in the text."""
    return answer_words(SENTENCE_END.split(measurement.answer.strip(), maxsplit=1)[0])


def _named(case: NeedleCase, measurement: Measurement) -> set[str]:
    """The planted codes that an answer names."""
    return set(case.planted) & set(re.findall(r"\d+", measurement.answer))
