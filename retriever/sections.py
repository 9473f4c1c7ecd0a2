"""A parsed document as sections: each the text under one heading, with the headings above it as context."""

from dataclasses import dataclass

from kvblend.retriever.document import ParsedDocument
from kvblend.retriever.sentences import BLOCK_GAP, Unit, split_block
from kvblend.retriever.tokenizer import PassageTokenizer

__all__ = ["Section", "split_sections"]

LOWEST_LEVEL = 6


@dataclass(frozen=True)
class Section:
    """Text between two headings. `context` is a line that names the headings it stands under, or empty.

    `level` is that of its own heading; 0 in front of the first one.
    """

    context: str
    units: tuple[Unit, ...]
    level: int


@dataclass(frozen=True)
class _Heading:
    text: str
    level: int


def split_sections(parsed: ParsedDocument, tokenizer: PassageTokenizer, *, max_context_tokens: int) -> list[Section]:
    """Split a document at its headings. A document without a heading of level 1 stands under its title.

    Of a heading path longer than `max_context_tokens` the outermost headings are left out. A heading that
    no context shows is text: in front of its section, or a section of its own where it has no text.
    """
    has_top = any(block.level == 1 for block in parsed.blocks)
    path = [_Heading(parsed.title, 0)] if parsed.title and not has_top else []
    drafts: list[tuple[list[_Heading], list[Unit]]] = [(path, [])]
    for block in parsed.blocks:
        if block.level:
            path = [heading for heading in path if heading.level < block.level] + [_Heading(block.text, block.level)]
            drafts.append((path, []))
        else:
            drafts[-1][1].extend(split_block(block, tokenizer))

    sections: list[Section] = []
    shown_by_next: list[_Heading] = []
    for path, units in reversed(drafts):  # backwards: whether a heading is shown is for the sections below it to say
        own = path[-1] if path and path[-1].level else None
        shown = _shorten(path, tokenizer, max_context_tokens)
        if not units:
            if own is None or any(heading is own for heading in shown_by_next):
                continue
            shown = _shorten(path[:-1], tokenizer, max_context_tokens)
            units = [Unit(own.text, BLOCK_GAP, 2, tokenizer.count(own.text))]
        elif own is not None and not any(heading is own for heading in shown):
            units = [Unit(own.text, BLOCK_GAP, 0, tokenizer.count(own.text)), *units]
        sections.append(Section(_context(shown), tuple(units), own.level if own else 0))
        shown_by_next = shown
    return sections[::-1]


def _context(headings: list[_Heading]) -> str:
    return "# " + " > ".join(heading.text for heading in headings) if headings else ""


def _shorten(path: list[_Heading], tokenizer: PassageTokenizer, max_tokens: int) -> list[_Heading]:
    """The longest end of a heading path whose context line has at most `max_tokens` tokens."""
    for start in range(len(path)):
        if tokenizer.count(_context(path[start:])) <= max_tokens:
            return path[start:]
    return []
