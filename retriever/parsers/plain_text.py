"""Plain text: paragraphs between blank lines, no headings."""

import re

from kvblend.retriever.document import Block, ParsedDocument

__all__ = ["parse_plain_text", "split_paragraphs"]

BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")


def split_paragraphs(text: str) -> list[str]:
    """Split at blank lines; paragraphs come without blank space at their ends, and none is empty."""
    return [stripped for paragraph in BLANK_LINES.split(text) if (stripped := paragraph.strip())]


def parse_plain_text(text: str) -> ParsedDocument:
    """Parse plain text."""
    return ParsedDocument(tuple(Block(paragraph) for paragraph in split_paragraphs(text)))
