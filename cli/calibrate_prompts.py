"""A question set as the service's own prompts."""

from collections.abc import Sequence
from typing import Any

from kvblend.api.blend_prompt import BlendPrompt, PromptPassage
from kvblend.api.encode_context import default_warm_context, make_encode_context
from kvblend.api.prompt import DEFAULT_PREAMBLE, PromptBuilder
from kvblend.cli.bench.question_set import Question
from kvblend.core.errors import InvalidRequestError

__all__ = ["calibration_prompts"]


def calibration_prompts(
    tokenizer: Any, questions: Sequence[Question], *, num_passages: int, passage_tokens: int
) -> list[BlendPrompt]:
    """One prompt a question, laid out as the service lays out those of a collection with its defaults.

    Each has the question's first `num_passages` passages, cut to `passage_tokens`, with the separator behind. Raises
    InvalidRequestError where a question has fewer.
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
        passages = [builder.cut_passage_ids(text, passage_tokens) for text in question.passages[:num_passages]]
        frame = builder.frame([], question.question, preamble=DEFAULT_PREAMBLE)
        prompts.append(BlendPrompt(frame, [PromptPassage(token_ids, context) for token_ids in passages]))
    return prompts
