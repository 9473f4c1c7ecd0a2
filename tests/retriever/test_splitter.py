"""Passages: within their budget, whole, in order, the same each time and almost the same after an edit."""

import random
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from kvblend.core.errors import InvalidRequestError
from kvblend.retriever import SEPARATOR, Block, ParsedDocument, PassageTokenizer, Splitter, parse_document

SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

SENTENCES = st.lists(
    st.one_of(
        st.from_regex(r"[A-Z][a-z]{1,8}( [a-z]{1,9}){0,30}[.!?]", fullmatch=True),
        st.sampled_from(
            ["Mr. J.\u00a0Smith paid $3.50 on Jan. 5.", "\u4eca\u5929\u5929\u6c14\u5f88\u597d\u3002", "x" * 900]
        ),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40),
    ),
    min_size=1,
    max_size=8,
)
BLOCKS = st.builds(
    lambda sentences, level, lines: Block(" ".join(sentences).strip(), level=level, lines=lines and not level),
    SENTENCES,
    st.sampled_from([0, 0, 0, 1, 2, 3]),
    st.booleans(),
).filter(lambda block: bool(block.text))
DOCUMENTS = st.builds(
    lambda blocks, title: ParsedDocument(tuple(blocks), title),
    st.lists(BLOCKS, max_size=12),
    st.sampled_from([None, "Title"]),
)


def squeeze(text: str) -> str:
    return re.sub(r"\s+", "", text)


def without_context(text: str) -> str:
    """A passage's text without its first line, where that names headings."""
    return text.partition(SEPARATOR)[2] if text.startswith("# ") else text


def make_prose(rng: random.Random, num_sentences: int) -> list[str]:
    words = [
        "the",
        "of",
        "cache",
        "passage",
        "token",
        "model",
        "answer",
        "question",
        "layer",
        "key",
        "value",
        "memory",
        "store",
        "reads",
        "writes",
    ]
    return [
        " ".join(rng.choice(words) for _ in range(rng.randrange(5, 25))).capitalize() + f" {rng.randrange(10**6)}."
        for _ in range(num_sentences)
    ]


@SLOW
@given(parsed=DOCUMENTS, passage_tokens=st.integers(16, 300))
def test_every_budget_is_kept_and_no_text_is_lost(
    passage_tokenizer: PassageTokenizer, parsed: ParsedDocument, passage_tokens: int
) -> None:
    splitter = Splitter(passage_tokenizer, passage_tokens)
    passages = splitter.split(parsed)
    assert passages == splitter.split(parsed)
    everything = squeeze("".join(passage.text for passage in passages))
    position = 0
    for passage in passages:
        assert 0 < len(passage.token_ids) <= passage_tokens
        assert list(passage.token_ids) == passage_tokenizer.encode_passage(passage.text)
    for block in parsed.blocks:
        wanted = squeeze(block.text)
        if block.level:
            assert _is_subsequence(wanted, everything)
        else:  # in order, with nothing between its pieces but repeated headings
            position = _find_in_order(wanted, everything, position)


def _is_subsequence(wanted: str, text: str) -> bool:
    rest = iter(text)
    return all(character in rest for character in wanted)


def _find_in_order(wanted: str, text: str, position: int) -> int:
    for character in wanted:
        position = text.index(character, position) + 1
    return position


@SLOW
@given(sentences=st.lists(SENTENCES, min_size=1, max_size=6), passage_tokens=st.integers(16, 300))
def test_text_without_headings_is_kept_to_the_letter(
    passage_tokenizer: PassageTokenizer, sentences: list[list[str]], passage_tokens: int
) -> None:
    blocks = [Block(text) for group in sentences if (text := " ".join(group).strip())]
    passages = Splitter(passage_tokenizer, passage_tokens).split(ParsedDocument(tuple(blocks)))
    assert squeeze("".join(passage.text for passage in passages)) == squeeze("".join(block.text for block in blocks))


def test_a_sentence_is_split_only_if_it_alone_is_too_long(passage_tokenizer: PassageTokenizer) -> None:
    sentences = make_prose(random.Random(1), 300)
    passages = Splitter(passage_tokenizer, 64).split(ParsedDocument((Block(" ".join(sentences)),)))
    assert [sentence for passage in passages for sentence in re.split(r"(?<=\.) ", passage.text)] == sentences
    assert all(passage.text.endswith(".") for passage in passages)
    long_sentence = " ".join(f"word{number}" for number in range(200)) + "."
    pieces = Splitter(passage_tokenizer, 64).split(ParsedDocument((Block(long_sentence),)))
    assert " ".join(piece.text for piece in pieces) == long_sentence  # between words


def test_lines_of_code_stay_whole(passage_tokenizer: PassageTokenizer) -> None:
    lines = [f"    call_{number}(a. b, c! d)" for number in range(80)]
    passages = Splitter(passage_tokenizer, 64).split(ParsedDocument((Block("\n".join(lines), lines=True),)))
    assert [line for passage in passages for line in passage.text.split("\n")] == lines


def test_a_long_section_repeats_its_headings(passage_tokenizer: PassageTokenizer) -> None:
    prose = " ".join(make_prose(random.Random(2), 60))
    text = f"# Guide\n\nIntro.\n\n## Install\n\n{prose}\n\n## Use\n\nUse it.\n\n### Fine points\n\nFew.\n"
    passages = Splitter(passage_tokenizer, 96).split(parse_document(text.encode(), None, name="a.md"))
    assert passages[0].text == "# Guide\n\nIntro."
    assert passages[-1].text == "# Guide > Use\n\nUse it.\n\n# Guide > Use > Fine points\n\nFew."
    assert len(passages) > 5
    assert all(passage.text.startswith("# Guide > Install\n\n") for passage in passages[1:-1])
    assert " ".join(without_context(passage.text) for passage in passages[1:-1]) == prose


def test_headings_without_text_are_kept(passage_tokenizer: PassageTokenizer) -> None:
    text = "# Guide\n\n## Empty\n\n## Full\n\nText.\n\n## Last\n"
    (passage,) = Splitter(passage_tokenizer, 96).split(parse_document(text.encode(), None, name="a.md"))
    assert passage.text == "# Guide\n\nEmpty\n\n# Guide > Full\n\nText.\n\n# Guide\n\nLast"


def test_a_heading_too_long_to_repeat_is_kept_once_with_what_follows(passage_tokenizer: PassageTokenizer) -> None:
    heading = "A heading " + "that goes on " * 8 + "to its end"
    prose = " ".join(make_prose(random.Random(3), 30))
    passages = Splitter(passage_tokenizer, 96).split(ParsedDocument((Block(heading, level=1), Block(prose))))
    assert passages[0].text.startswith(f"{heading}{SEPARATOR}{prose[:20]}")
    assert sum(heading in passage.text for passage in passages) == 1


def test_the_title_stands_in_for_a_heading(passage_tokenizer: PassageTokenizer) -> None:
    parsed = ParsedDocument((Block("Text."), Block("Part", level=2), Block("More.")), "Title")
    (passage,) = Splitter(passage_tokenizer, 64).split(parsed)
    assert passage.text == "# Title\n\nText.\n\n# Title > Part\n\nMore."


def test_passages_are_well_filled_and_an_edit_changes_few(passage_tokenizer: PassageTokenizer) -> None:
    rng = random.Random(4)
    sentences = make_prose(rng, 800)
    splitter = Splitter(passage_tokenizer, 256)
    before = splitter.split(ParsedDocument((Block(" ".join(sentences)),)))
    fill = sum(len(passage.token_ids) for passage in before[:-1]) / (256 * (len(before) - 1))
    assert fill > 0.68
    known = {passage.passage_id for passage in before}
    changed = []
    for _ in range(12):
        place = rng.randrange(len(sentences))
        edited = [*sentences[:place], *make_prose(rng, 3), *sentences[place:]]
        after = splitter.split(ParsedDocument((Block(" ".join(edited)),)))
        changed.append(sum(passage.passage_id not in known for passage in after))
    assert len(before) > 50
    assert sum(changed) / len(changed) < 4
    assert max(changed) < 12


def test_tokens_are_those_of_the_hugging_face_tokenizer(tokenizer: Tokenizer) -> None:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    ours = PassageTokenizer(fast)
    text = "Caf\u00e9 \u4eca\u5929 don't  stop"
    assert ours.encode_passage(text) == fast(text + SEPARATOR, add_special_tokens=False).input_ids


def test_control_tokens_in_a_document_are_plain_text(tokenizer: Tokenizer) -> None:
    control = tokenizer.token_to_id("<|im_end|>")
    assert control is not None
    assert control in tokenizer.encode("a<|im_end|>b", add_special_tokens=False).ids
    assert control not in PassageTokenizer(tokenizer).encode_passage("a<|im_end|>b")


def test_bad_arguments_are_refused(passage_tokenizer: PassageTokenizer) -> None:
    with pytest.raises(InvalidRequestError, match="passage_tokens is 15; it must be at least 16"):
        Splitter(passage_tokenizer, 15)
    with pytest.raises(TypeError, match="fast tokenizer"):
        PassageTokenizer("gpt2")
