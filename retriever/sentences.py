"""Blocks of text to the units that a passage does not break: sentences, or lines in lists, tables and code."""

import re
from dataclasses import dataclass
from itertools import accumulate

import sentencex

from kvblend.retriever.document import Block
from kvblend.retriever.tokenizer import PassageTokenizer

__all__ = ["Unit", "split_block", "split_long_unit"]

BLANK = re.compile(r"\s")
BLOCK_GAP = "\n\n"
CHARACTERS_PER_TOKEN = 16  # more than any language's prose has; bounds the work on endless lines


@dataclass(frozen=True)
class Unit:
    """A sentence or line, the blank space that follows it, and how good a place for a cut its end is.

    `rank`: 0 where no cut is wanted (behind a heading), 1 at a sentence's or line's end, 2 at a block's end;
    at a section's end more, the higher the heading that follows stands.
    """

    text: str
    gap: str
    rank: int
    num_tokens: int


def split_block(block: Block, tokenizer: PassageTokenizer) -> list[Unit]:
    """Split a block into units; joined by their gaps they are the block's text again."""
    parts = block.text.splitlines(keepends=True) if block.lines else _split_sentences(block.text)
    texts: list[tuple[str, str]] = []
    for part in parts:
        text = part.rstrip()
        gap = part[len(text) :]
        if text:
            texts.append((text, gap))
        elif texts:
            texts[-1] = (texts[-1][0], texts[-1][1] + gap)
    counts = tokenizer.count_each([text for text, _ in texts])
    units = [Unit(text, gap, 1, count) for (text, gap), count in zip(texts, counts, strict=True)]
    if units:
        units[-1] = Unit(units[-1].text, BLOCK_GAP, 2, units[-1].num_tokens)
    return units


def _split_sentences(text: str) -> list[str]:
    """Sentences with the blank space behind them: together they are the text.

    The rules are English ones with all scripts' full stops. Any blank space counts as a plain one, since
    the library panics on a no-break space behind an initial; what it cannot split stays one sentence.
    """
    plain = BLANK.sub(lambda blank: blank[0] if blank[0] in " \n\t" else " ", text)
    try:
        lengths = [len(sentence) for sentence in sentencex.segment("en", plain)]
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # PyO3's, which cannot be imported and is no Exception
            raise
        return [text]
    if sum(lengths) != len(text):
        return [text]
    ends = list(accumulate(lengths))
    return [text[end - length : end] for length, end in zip(lengths, ends, strict=True)]


def split_long_unit(unit: Unit, tokenizer: PassageTokenizer, *, max_tokens: int) -> list[Unit]:
    """Split a unit of more than `max_tokens` tokens at line ends, else between words, else anywhere."""
    pieces: list[Unit] = []
    rest = unit.text
    while rest:
        head = rest[: max_tokens * CHARACTERS_PER_TOKEN]
        ends = tokenizer.token_ends(head)
        if len(head) == len(rest) and len(ends) <= max_tokens:
            pieces.append(Unit(rest, unit.gap, unit.rank, len(ends)))
            break
        limit = ends[max_tokens - 1] if len(ends) > max_tokens else len(head)
        cut = _best_cut(rest, limit)
        while cut > 1 and tokenizer.count(rest[:cut].rstrip()) > max_tokens:
            cut = _best_cut(rest, cut - max(1, cut // 8))
        text = rest[:cut].rstrip()
        following = rest[cut:].lstrip()
        gap = rest[len(text) : len(rest) - len(following)]
        if text:
            pieces.append(Unit(text, gap, 1, tokenizer.count(text)))
        rest = following
    return pieces


def _best_cut(text: str, limit: int) -> int:
    """Where to cut so that the first part is not longer than `limit` characters, and at least one."""
    if limit >= len(text):
        return len(text)
    for separators in ("\n", " \t\u3000"):
        cut = max(text.rfind(separator, limit // 2, limit + 1) for separator in separators)
        if cut > 0:
            return cut
    return max(limit, 1)
