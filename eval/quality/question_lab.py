"""Measure one question in the lab: full prefill once, then every method over the same passages."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvblend.blend import DenseContextKV, LabPrompt
from kvblend.blend.hf import EncodedPassage, HuggingFaceModel, extend, lay_out, prefill
from kvblend.eval.quality.answer_f1 import answer_f1
from kvblend.eval.quality.divergence import mean_kl
from kvblend.eval.quality.encoders import Encoders
from kvblend.eval.quality.encodes import ENCODES
from kvblend.eval.quality.prompt_parts import PromptParts
from kvblend.eval.rivals import LAB_SELECTORS

__all__ = ["ANSWER_TOKENS", "Measurement", "QuestionLab"]

ANSWER_TOKENS = 16


@dataclass(frozen=True)
class Measurement:
    """One method on one question, against full prefill; `answer` is the method's own, decoded."""

    kl: float
    agreement: float
    f1: float
    flops_ratio: float
    answer: str = ""


class QuestionLab:
    """One question's full prefill and greedy answer, and methods measured against them.

    The answer ends with the first of `end_tokens`, or after `answer_tokens`.
    """

    def __init__(
        self,
        model: HuggingFaceModel,
        tokenizer: Any,
        encoders: Encoders,
        parts: PromptParts,
        gold: Sequence[str],
        *,
        end_tokens: frozenset[int],
        answer_tokens: int = ANSWER_TOKENS,
    ) -> None:
        self._model, self._tokenizer, self._encoders = model, tokenizer, encoders
        self._parts, self._gold, self._end_tokens = parts, gold, end_tokens
        self._prompt_tokens, self._answer_tokens = len(parts.prompt), answer_tokens
        context, logits = prefill(model, parts.prompt, room=answer_tokens)
        self.answer = self._greedy(context, [int(logits.argmax())])
        steps = [logits]
        if len(self.answer) > 1:
            steps.append(
                extend(model, context, self.answer[:-1], start=self._prompt_tokens, num_last=len(self.answer) - 1)
            )
        self._reference = torch.cat(steps).log_softmax(-1)
        positions = torch.arange(self._prompt_tokens, device=model.device)
        self._full_flops = model.flops.full_prefill(positions)

    @property
    def full_prefill(self) -> Measurement:
        answer = self._text(self.answer)
        return Measurement(0.0, 1.0, answer_f1(answer, self._gold), 1.0, answer)

    def lay_out(self, encode: str, *, stored: Callable[[Tensor], Tensor] | None = None) -> LabPrompt:
        """Full reuse with passages encoded as `ENCODES` names it; `stored` is what a store makes of a passage's KV."""
        passages = []
        for index, passage in enumerate(self._parts.passages):
            encoder = self._encoders.get(ENCODES[encode](self._parts, index))
            kv = encoder.encode(passage)
            passages.append(EncodedPassage(passage, stored(kv) if stored else kv, encoder.encode_context))
        preamble_kv = self._encoders.get(self._parts.preamble).prefix_kv
        return lay_out(
            self._model, self._parts.preamble, preamble_kv, passages, self._parts.question, room=self._answer_tokens
        )

    def measure(self, laid_out: LabPrompt, selector: str, recompute_ratio: float) -> Measurement:
        """Blend a copy of the prompt and answer from it, teacher-forced, then greedily from where that departs."""
        prompt = laid_out.copy()
        computed = LAB_SELECTORS[selector].blend(prompt, recompute_ratio=recompute_ratio)
        tail = [*self._parts.question, *self.answer[:-1]]
        logits = extend(self._model, prompt.whole, tail, start=prompt.num_context, num_last=len(self.answer))
        ours = logits.log_softmax(-1)
        choices = logits.argmax(-1).tolist()
        agreement = float((ours.argmax(-1) == self._reference.argmax(-1)).float().mean())
        flops = self._model.flops.blend(computed, prompt.question_positions)
        answer = self._text(self._own_answer(prompt.whole, choices))
        return Measurement(
            mean_kl(self._reference, ours), agreement, answer_f1(answer, self._gold), flops / self._full_flops, answer
        )

    def _own_answer(self, context: DenseContextKV, choices: list[int]) -> list[int]:
        """The greedy answer: full prefill's up to where `choices` depart from it."""
        for step, (ours, theirs) in enumerate(zip(choices, self.answer, strict=True)):
            if ours != theirs:
                return self._greedy(context, [*self.answer[:step], ours])
        return self.answer

    def _greedy(self, context: DenseContextKV, answer: list[int]) -> list[int]:
        """Continue `answer`, whose last token's KV is not yet in `context`, to its end."""
        while len(answer) < self._answer_tokens and answer[-1] not in self._end_tokens:
            start = self._prompt_tokens + len(answer) - 1
            logits: Tensor = extend(self._model, context, answer[-1:], start=start)
            answer = [*answer, int(logits.argmax())]
        return answer

    def _text(self, answer: list[int]) -> str:
        text: str = self._tokenizer.decode(answer, skip_special_tokens=True)
        return text
