"""A prompt's tokens, its plan, and the bound on its length."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvblend.api.kv.encode_context import EncodeContext
from kvblend.api.prompt.blend_prompt import BlendPrompt, PromptPassage
from kvblend.api.prompt.builder import Frame
from kvblend.core.errors import PromptTooLongError
from kvblend.core.identity import token_hash
from kvblend.core.order_fields import with_order
from kvblend.core.plan import ContextPlan, Cut, Span
from kvblend.vllm_connector.span_keys import place_spans

CONTEXT = EncodeContext((1, 2, 3), 2)
Tokens = st.lists(st.integers(0, 1000), min_size=1, max_size=8).map(tuple)


def prompt_of(*lengths: int) -> BlendPrompt:
    passages = [PromptPassage.behind(CONTEXT, tuple(range(length))) for length in lengths]
    return BlendPrompt(Frame((1, 2), (9, 9, 9)), passages)


@given(preamble=Tokens, passages=st.lists(Tokens, min_size=1, max_size=5), question=Tokens)
def test_spans_cover_the_tokens_up_to_the_question(
    preamble: tuple[int, ...], passages: list[tuple[int, ...]], question: tuple[int, ...]
) -> None:
    prompt = BlendPrompt(Frame(preamble, question), [PromptPassage.behind(CONTEXT, passage) for passage in passages])
    plan = ContextPlan(spans=prompt.spans({}))
    assert plan.num_tokens == prompt.num_context_tokens == len(prompt.token_ids) - len(question)
    start = 0
    for span, tokens in zip(plan.spans, [preamble, *passages], strict=True):
        assert tuple(prompt.token_ids[start : start + span.num_tokens]) == tokens
        start += span.num_tokens
    assert [span.encode_contexts for span in plan.spans[1:]] == [(CONTEXT.hash,)] * len(passages)
    ratios = [span.recompute_ratios for span in prompt.spans({"neutral": 0.25})[1:]]
    assert ratios == [(0.25,)] * len(passages)


Maybe = st.lists(st.integers(0, 1000), max_size=4).map(tuple)


@given(st.lists(st.tuples(Maybe, Maybe, Tokens, Maybe), min_size=1, max_size=4))
def test_parts_of_passages_among_other_text(
    parts: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]],
) -> None:
    """(lead, what is cut off in front, what the prompt holds, what is cut off behind) of each passage."""
    passages = [
        replace(
            PromptPassage.behind(CONTEXT, (*before, *held, *after)),
            lead_ids=lead,
            num_cut=(len(before), len(after)),
        )
        for lead, before, held, after in parts
    ]
    prompt = BlendPrompt(Frame((1, 2), (9,)), passages)
    tokens = [1, 2, *(token for lead, _, held, _ in parts for token in (*lead, *held)), 9]
    plan = ContextPlan(spans=prompt.spans({}))
    assert prompt.token_ids == tokens and plan.num_tokens == prompt.num_context_tokens == len(tokens) - 1
    placed = place_spans(ContextPlan.model_validate_json(plan.model_dump_json()), tokens)
    found = [span for span in placed if span.is_passage]
    for span, passage, (_, before, held, after) in zip(found, passages, parts, strict=True):
        assert tuple(tokens[span.start : span.end]) == held
        assert [choice.passage_id for choice in span.choices] == [passage.passage_id]
        assert span.num_cut == (len(before), len(after)) and span.num_stored_tokens == len(passage.token_ids)
    prompt.check_length(max_model_len=len(tokens) + 7, max_tokens=7)
    with pytest.raises(PromptTooLongError, match=f"the first {len(parts) - 1} would fit"):
        prompt.check_length(max_model_len=len(tokens) + 6, max_tokens=7)


def test_part_of_a_passage_is_exact_where_its_beginning_stands_behind_its_context() -> None:
    """What follows it in its passage does not matter; what preceded it there, and is missing here, does."""
    tokens = [1, 2, 3, 4, 9]
    for cut, exact in ((Cut(after=(5, 6)), True), (Cut(before=(2,)), False)):
        span = Span(kind="passage", num_tokens=2, encode_contexts=(token_hash([1, 2]),), cut=cut)
        plan = ContextPlan(spans=(Span(kind="exact", num_tokens=2), span), recompute_ratio=0.5)
        (choice,) = place_spans(plan, tokens)[1].choices
        assert (choice.exact, choice.recompute_ratio) == (exact, 0.0 if exact else 0.5)


def test_what_no_cut_can_be() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        Cut()
    with pytest.raises(ValueError, match="for a passage span and for no other"):
        Span(kind="fresh", num_tokens=2, cut=Cut(after=(1,)))
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        Cut(before=(-1,))


def test_a_plan_without_cuts_is_what_it_was() -> None:
    """A connector that knows no cuts takes it."""
    prompt = prompt_of(3)
    fields = with_order({}, prompt.order(recompute_ratio=0.5, report_id="r"), prompt.token_ids)
    assert "cut" not in fields["kv_transfer_params"]["kvblend"]["blend"]["spans"][1]


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
