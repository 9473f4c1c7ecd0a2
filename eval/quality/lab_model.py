"""A model in the lab, with its tokenizer: from a question and texts to the lab of that question."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer

from kvblend.api.kv.encode_context import default_warm_context
from kvblend.api.prompt.builder import PromptBuilder
from kvblend.blend.hf import HuggingFaceModel
from kvblend.eval.quality.encoders import Encoders
from kvblend.eval.quality.prompt_parts import PromptParts, TokenSurroundings
from kvblend.eval.quality.question_lab import ANSWER_TOKENS, QuestionLab
from kvblend.eval.questions.question_set import SHORT_ANSWER, Surroundings

__all__ = ["LabModel"]


class LabModel:
    """Passages are cut to `passage_tokens`. `dtype` is torch's name of one."""

    def __init__(self, path: str | Path, *, dtype: str, passage_tokens: int) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.prompts = PromptBuilder(self.tokenizer)
        self._model = HuggingFaceModel.load(path, dtype=getattr(torch, dtype))
        self._passage_tokens = passage_tokens
        self._neutral = self.prompts.passage_ids(default_warm_context())
        self._encoders = Encoders(self._model)
        self._end_tokens = self._model.end_tokens | {self.tokenizer.eos_token_id}

    def lab(
        self,
        question: str,
        passages: Sequence[str],
        gold: Sequence[str],
        *,
        unrelated: str,
        related: str | None = None,
        surroundings: Sequence[Surroundings] = (),
        answer_tokens: int = ANSWER_TOKENS,
    ) -> QuestionLab:
        """The lab of one question; `unrelated`, `related` and `surroundings` are the texts that `PromptParts` has."""
        frame = self.prompts.frame([], question, preamble=SHORT_ANSWER)
        parts = PromptParts(
            preamble=frame.preamble_ids,
            passages=tuple(self._passage(text) for text in passages),
            question=frame.question_ids,
            unrelated=self._passage(unrelated),
            related=() if related is None else self._passage(related),
            neutral=self._neutral,
            surroundings=tuple(self._surroundings(one) for one in surroundings),
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

    def _surroundings(self, texts: Surroundings) -> TokenSurroundings:
        return TokenSurroundings(
            self._passage(texts.title) if texts.title else (),
            tuple(self._passage(text) for text in texts.preceding),
            tuple(self._passage(text) for text in texts.similar),
            tuple(self._passage(text) for text in texts.former),
        )

    def _passage(self, text: str) -> tuple[int, ...]:
        return self.prompts.cut_passage_ids(text, self._passage_tokens)
