"""Prompts on a real chat template, and on models with another or none."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from kvblend.api.prompt.builder import DEFAULT_PREAMBLE, PromptBuilder
from kvblend.core.errors import InvalidRequestError
from kvblend.retriever import PassageTokenizer

NO_SYSTEM = """{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}\
{% endif %}<{{ m['role'] }}>{{ m['content'] | trim }}</{{ m['role'] }}>{% endfor %}<model>"""
TWICE = "{% for m in messages %}{{ m['content'] }}{{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer(demo_model_path: Path) -> Any:
    return AutoTokenizer.from_pretrained(demo_model_path)


def with_template(demo_model_path: Path, template: str | None) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path)
    tokenizer.chat_template = template
    return tokenizer


def test_the_parts_are_the_template_rendered_whole(tokenizer: Any) -> None:
    frame = PromptBuilder(tokenizer).frame([], "Why?", preamble="Be brief.")
    text = tokenizer.decode([*frame.preamble_ids, *frame.question_ids])
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Passages:\n\nQuestion: Why?"},
    ]
    assert text == tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)


@settings(max_examples=30)
@given(question=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
def test_the_preamble_does_not_depend_on_the_question(tokenizer: Any, question: str) -> None:
    prompts = PromptBuilder(tokenizer)
    assert prompts.frame([], question, preamble=DEFAULT_PREAMBLE).preamble_ids == prompts.preamble_ids(DEFAULT_PREAMBLE)


def test_later_turns_belong_to_the_question(tokenizer: Any) -> None:
    prompts = PromptBuilder(tokenizer)
    later = [{"role": "assistant", "content": "Because."}, {"role": "user", "content": "Really?"}]
    frame = prompts.frame(later, "Why?", preamble=DEFAULT_PREAMBLE)
    assert frame.preamble_ids == prompts.preamble_ids(DEFAULT_PREAMBLE)
    text = tokenizer.decode(frame.question_ids)
    assert text.index("Why?") < text.index("Because.") < text.index("Really?")


def test_earlier_turns_stand_before_the_passages(tokenizer: Any) -> None:
    """Reference: the template over the whole conversation. Ours: the frame's parts."""
    earlier = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    frame = PromptBuilder(tokenizer).frame([], "Really?", preamble="Be brief.", earlier=earlier)
    conversation = [
        {"role": "system", "content": "Be brief."},
        *earlier,
        {"role": "user", "content": "Passages:\n\nQuestion: Really?"},
    ]
    whole = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode([*frame.preamble_ids, *frame.question_ids]) == whole
    assert "Because." in tokenizer.decode(frame.preamble_ids) and not frame.recurs


@pytest.mark.parametrize("template", [NO_SYSTEM, None])
def test_earlier_turns_stand_before_the_passages_in_other_layouts(demo_model_path: Path, template: str | None) -> None:
    tokenizer = with_template(demo_model_path, template)
    earlier = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    frame = PromptBuilder(tokenizer).frame([], "Really?", preamble="Be brief.", earlier=earlier)
    preamble = tokenizer.decode(frame.preamble_ids)
    places = [preamble.index(part) for part in ("Be brief.", "Why?", "Because.", "Passages:")]
    assert places == sorted(places)
    assert "Really?" in tokenizer.decode(frame.question_ids)


def test_a_template_without_system_messages_takes_the_preamble_into_the_user_turn(demo_model_path: Path) -> None:
    tokenizer = with_template(demo_model_path, NO_SYSTEM)
    frame = PromptBuilder(tokenizer).frame([], "Why?", preamble="Be brief.")
    assert tokenizer.decode(frame.preamble_ids).endswith("<user>Be brief.\n\nPassages:\n\n")
    assert tokenizer.decode(frame.question_ids) == "Question: Why?</user><model>"


def test_a_model_without_a_template_gets_a_plain_layout(demo_model_path: Path) -> None:
    tokenizer = with_template(demo_model_path, None)
    frame = PromptBuilder(tokenizer).frame([], "Why?", preamble="Be brief.")
    assert tokenizer.decode(frame.preamble_ids) == "Be brief.\n\nPassages:\n\n"
    assert tokenizer.decode(frame.question_ids) == "Question: Why?\n\nAnswer:"


def test_a_template_that_repeats_the_message_is_refused(demo_model_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="once and whole"):
        PromptBuilder(with_template(demo_model_path, TWICE)).frame([], "Why?", preamble="Be brief.")


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 / odd }}",
        "{{ 10.0 ** 400 }}",
        "{{ odd.no.more }}",
        "{{ odd[1:] }}",
        "{{ '{a}'.format() }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_whatever_a_template_raises_is_a_refusal(demo_model_path: Path, template: str) -> None:
    prompts = PromptBuilder(with_template(demo_model_path, template))
    with pytest.raises(InvalidRequestError, match="refuses the messages"):
        prompts.chat_ids([{"role": "user", "content": "?"}], {"odd": 0})


def test_no_options_take_the_place_of_the_models_template(tokenizer: Any) -> None:
    prompts, messages = PromptBuilder(tokenizer), [{"role": "user", "content": "?"}]
    options = {"chat_template": "{{ 1 / 0 }}", "tokenize": True}
    assert prompts.chat_ids(messages, options) == prompts.chat_ids(messages, {})


def test_a_passage_has_the_tokens_that_the_splitter_gives_it(tokenizer: Any) -> None:
    text = "A passage.<|im_end|> Still the passage."
    ids = PromptBuilder(tokenizer).passage_ids(text)
    assert list(ids) == PassageTokenizer(tokenizer).encode_passage(text)
    assert tokenizer.eos_token_id not in ids
