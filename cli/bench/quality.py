"""Quality of every selector, way to encode and ratio, against full prefill and counted FLOPs."""

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
from kvblend.cli.bench.bootstrap import Resamples
from kvblend.cli.bench.quality_encodes import PromptParts
from kvblend.cli.bench.quality_lab import Measurement, QuestionLab, make_encoders
from kvblend.cli.bench.quality_run import all_measured, measure_question, method_keys
from kvblend.cli.bench.quality_state import MethodKey, QualityState
from kvblend.cli.bench.question_set import Half, Question, load_questions, take_half
from kvblend.cli.progress import count_progress
from kvblend.core.errors import InvalidRequestError

__all__ = ["BASELINE", "QualitySettings", "quality_bench"]

PREAMBLE = "Answer the question using the passages. Answer within 5 words."
SEPARATOR = "\n\n"
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
    encodes: Sequence[str],
    selectors: Sequence[str],
    ratios: Sequence[float],
    num_questions: int | None,
    state_path: Path | None,
    console: Console,
) -> list[dict[str, Any]]:
    """Measure every method on the questions; resumable where `state_path` is given.

    Returns rows {selector, encode, recompute_ratio, flops_ratio, num_questions, kl, kl_ci95, agreement, f1,
    kl_fraction, kl_fraction_ci95}, means over questions; the first is full prefill itself. `kl_fraction` is the KL as
    a fraction of CacheBlend's (values of layer 1, exact mask, passages alone) at the same ratio. The set's last
    question gives the unrelated warm context and is not asked.
    """
    questions = load_questions(settings.questions)
    if len(questions) < 3:
        raise InvalidRequestError(f"{len(questions)} questions; at least 3 are needed")
    asked = take_half(questions[:-1], settings.half)[:num_questions]
    keys = method_keys(encodes, selectors, ratios)
    kept = {"model": Path(model_path).name, **settings.model_dump(mode="json")}
    state = QualityState(state_path, kept | {"questions": settings.questions and settings.questions.name})
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    bench = _Bench(HuggingFaceModel.load(model_path, dtype=getattr(torch, settings.dtype)), tokenizer, settings)
    with count_progress(console) as progress:
        task = progress.add_task("measurements", total=len(asked) * len(keys))
        for index, question in enumerate(asked):
            for _ in measure_question(index, keys, state, partial(bench.lab, question, questions[-1])):
                progress.advance(task)
    measured = all_measured(state, keys, questions=range(len(asked)))
    return list(_rows(measured, Resamples(len(asked))))


class _Bench:
    def __init__(self, model: HuggingFaceModel, tokenizer: Any, settings: QualitySettings) -> None:
        self._model, self._tokenizer, self._settings = model, tokenizer, settings
        self._prompts = PromptBuilder(tokenizer)
        self._separator = self._prompts.text_ids(SEPARATOR)
        self._neutral = self._prompts.passage_ids(default_warm_context())
        self._encoders = make_encoders(model)
        self._end_tokens = model.end_tokens | {tokenizer.eos_token_id}

    def lab(self, question: Question, last: Question) -> QuestionLab:
        """The lab of one question; `last` gives the unrelated warm context."""
        parts = self._parts(question, last)
        return QuestionLab(
            self._model, self._tokenizer, self._encoders, parts, question.answers, end_tokens=self._end_tokens
        )

    def _parts(self, question: Question, last: Question) -> PromptParts:
        num_passages = self._settings.num_passages
        frame = self._prompts.frame([], question.question, preamble=PREAMBLE)
        related = question.passages[num_passages : num_passages + 1]
        return PromptParts(
            preamble=frame.preamble_ids,
            passages=tuple(self._passage(text) for text in question.passages[:num_passages]),
            question=frame.question_ids,
            unrelated=self._passage(last.passages[0]),
            related=self._passage(related[0]) if related else (),
            neutral=self._neutral,
        )

    def _passage(self, text: str) -> tuple[int, ...]:
        return self._prompts.text_ids(text)[: self._settings.passage_tokens] + self._separator


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
