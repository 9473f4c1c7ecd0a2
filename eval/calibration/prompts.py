"""A question set as the service's own prompts, with each kind of encode context."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from kvblend.api.kv.encode_context import EncodeContext, default_warm_context, make_encode_context
from kvblend.api.kv.encode_run import EncodeRun
from kvblend.api.prompt.blend_prompt import BlendPrompt, PromptPassage
from kvblend.api.prompt.builder import DEFAULT_PREAMBLE, PromptBuilder
from kvblend.core.calibration import EncodeKind
from kvblend.core.errors import InvalidRequestError
from kvblend.eval.questions.question_set import Question

__all__ = ["CalibrationPrompt", "calibration_prompts"]

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class CalibrationPrompt:
    """One prompt, whose passages are encoded in one way after the other; its tokens are the same in all."""

    kinds: Mapping[EncodeKind, BlendPrompt]

    @property
    def runs(self) -> list[EncodeRun]:
        """What the store has to hold for all of them, the preamble aside."""
        sources = [passage.source for prompt in self.kinds.values() for passage in prompt.passages]
        return [source for source in sources if isinstance(source, EncodeRun)]


def calibration_prompts(
    tokenizer: Any, questions: Sequence[Question], *, num_passages: int, passage_tokens: int
) -> list[CalibrationPrompt]:
    """One prompt a question, laid out as the service lays out those of a collection with its defaults.

    Each has the question's first `num_passages` passages, cut to `passage_tokens`, with the separator behind. Of a
    passage whose document the set does not have, the first half is its document's preceding text, and the second half
    stands in the prompt. Raises InvalidRequestError where a question has fewer passages.
    """
    builder = PromptBuilder(tokenizer)
    context = make_encode_context(builder.preamble_ids(DEFAULT_PREAMBLE), builder.passage_ids(default_warm_context()))
    prompts = []
    for number, question in enumerate(questions, 1):
        if len(question.passages) < num_passages:
            raise InvalidRequestError(
                f"question {number} has {len(question.passages)} passages; {num_passages} are asked for",
                param="num_passages",
            )
        before, passages = [], []
        for text, around in zip(question.passages[:num_passages], question.surroundings[:num_passages], strict=True):
            preceding, own = (around.preceding[-1], text) if around.preceding else _halves(text)
            before.append(builder.cut_passage_ids(preceding, passage_tokens))
            passages.append(builder.cut_passage_ids(own, passage_tokens))
        frame = builder.frame([], question.question, preamble=DEFAULT_PREAMBLE)
        runs = _runs(context, before, passages)
        prompts.append(
            CalibrationPrompt(
                {
                    kind: BlendPrompt(frame, [PromptPassage.of_run(run, kind) for run in own])
                    for kind, own in runs.items()
                }
            )
        )
    return prompts


def _runs(
    context: EncodeContext, before: Sequence[Tokens], passages: Sequence[Tokens]
) -> dict[EncodeKind, list[EncodeRun]]:
    """How each passage is encoded, by kind. The first to fit stands behind the preamble, where it is exact; the others
    are not, since what is in front of their neighbour is another text."""
    preamble, second = EncodeContext(context.preamble_ids, context.num_preamble), frozenset({0})
    return {
        "fits": [
            EncodeRun.alone(preamble, passages[0]),
            *(EncodeRun(context, pair, second) for pair in pairwise(passages)),
        ],
        "document": [EncodeRun(context, pair, second) for pair in zip(before, passages, strict=True)],
        "neutral": [EncodeRun.alone(context, passage) for passage in passages],
    }


def _halves(text: str) -> tuple[str, str]:
    """A text cut at the end of the sentence that is nearest to its middle; a single sentence stands before itself."""
    ends = [match.start() for match in SENTENCE_END.finditer(text)]
    if not ends:
        return text, text
    middle = min(ends, key=lambda end: abs(2 * end - len(text)))
    return text[:middle], text[middle:].lstrip()
