"""A model in the lab, with its tokenizer: from a question and texts to the lab of that question."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer

from kvblend.api.encode_context import default_warm_context
from kvblend.api.prompt import PromptBuilder
from kvblend.blend.hf import HuggingFaceModel
from kvblend.cli.bench.quality_encodes import PromptParts
from kvblend.cli.bench.quality_lab import ANSWER_TOKENS, QuestionLab, make_encoders
from kvblend.cli.bench.question_set import SHORT_ANSWER

__all__ = ["LabModel"]


class LabModel:
    """Passages are cut to `passage_tokens`. `dtype` is torch's name of one."""

    def __init__(self, path: str | Path, *, dtype: str, passage_tokens: int) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.prompts = PromptBuilder(self.tokenizer)
        self._model = HuggingFaceModel.load(path, dtype=getattr(torch, dtype))
        self._passage_tokens = passage_tokens
        self._neutral = self.prompts.passage_ids(default_warm_context())
        self._encoders = make_encoders(self._model)
        self._end_tokens = self._model.end_tokens | {self.tokenizer.eos_token_id}

    def lab(
        self,
        question: str,
        passages: Sequence[str],
        gold: Sequence[str],
        *,
        unrelated: str,
        related: str | None = None,
        answer_tokens: int = ANSWER_TOKENS,
    ) -> QuestionLab:
        """The lab of one question; `unrelated` and `related` are the texts of `PromptParts`' other passages."""
        frame = self.prompts.frame([], question, preamble=SHORT_ANSWER)
        parts = PromptParts(
            preamble=frame.preamble_ids,
            passages=tuple(self._passage(text) for text in passages),
            question=frame.question_ids,
            unrelated=self._passage(unrelated),
            related=() if related is None else self._passage(related),
            neutral=self._neutral,
        )
        return QuestionLab(
            self._model,
            self.tokenizer,
            self._encoders,
            parts,
            gold,
            end_tokens=self._end_tokens,
            answer_tokens=answer_tokens,
        )

    def _passage(self, text: str) -> tuple[int, ...]:
        return self.prompts.cut_passage_ids(text, self._passage_tokens)
