"""A prompt's tokens, its plan, and the bound on its length."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvblend.api.blend_prompt import BlendPrompt, PromptPassage
from kvblend.api.encode_context import EncodeContext
from kvblend.api.prompt import Frame
from kvblend.core.errors import PromptTooLongError
from kvblend.core.plan import ContextPlan

CONTEXT = EncodeContext((1, 2, 3), 2)
Tokens = st.lists(st.integers(0, 1000), min_size=1, max_size=8).map(tuple)


def prompt_of(*lengths: int) -> BlendPrompt:
    passages = [PromptPassage(tuple(range(length)), CONTEXT) for length in lengths]
    return BlendPrompt(Frame((1, 2), (9, 9, 9)), passages)


@given(preamble=Tokens, passages=st.lists(Tokens, min_size=1, max_size=5), question=Tokens)
def test_spans_cover_the_tokens_up_to_the_question(
    preamble: tuple[int, ...], passages: list[tuple[int, ...]], question: tuple[int, ...]
) -> None:
    prompt = BlendPrompt(Frame(preamble, question), [PromptPassage(passage, CONTEXT) for passage in passages])
    plan = ContextPlan(spans=prompt.spans)
    assert plan.num_tokens == prompt.num_context_tokens == len(prompt.token_ids) - len(question)
    start = 0
    for span, tokens in zip(plan.spans, [preamble, *passages], strict=True):
        assert tuple(prompt.token_ids[start : start + span.num_tokens]) == tokens
        start += span.num_tokens
    assert [span.encode_contexts for span in plan.spans[1:]] == [(CONTEXT.hash,)] * len(passages)


def test_a_prompt_that_just_fits_is_taken() -> None:
    prompt_of(10, 20).check_length(max_model_len=2 + 30 + 3 + 7, max_tokens=7)


def test_a_prompt_too_long_says_by_how_much_and_what_would_fit() -> None:
    with pytest.raises(
        PromptTooLongError, match=r"2 more than the model's 40; of its 2 passages the first 1 would fit"
    ):
        prompt_of(10, 20).check_length(max_model_len=40, max_tokens=7)


def test_a_question_that_alone_is_too_long_leaves_no_passage() -> None:
    with pytest.raises(PromptTooLongError, match="the first 0 would fit"):
        prompt_of(10, 20).check_length(max_model_len=8, max_tokens=7)
