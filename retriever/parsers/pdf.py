"""PDF: the text of its pages, its outline's entries taken as headings where they stand on a line of their own."""

import io
import re
from collections.abc import Sequence

from pypdf import PdfReader
from pypdf.errors import PyPdfError
from pypdf.generic import Destination

from kvblend.core.errors import UnsupportedDocumentError
from kvblend.retriever.document import Block, ParsedDocument
from kvblend.retriever.parsers.plain_text import split_paragraphs

__all__ = ["parse_pdf"]

PLACEHOLDER_TITLES = frozenset({"untitled", "untitled document", "unknown"})
"""What writers put where nobody gave a title."""

HYPHENATED = re.compile(r"(?<=[a-z])-\n(?=[a-z])")


def parse_pdf(data: bytes, *, name: str) -> ParsedDocument:
    """Parse a PDF. Words hyphenated at a line's end are joined; a scan without a text layer gives no blocks.

    Raises:
        UnsupportedDocumentError: the file is broken, or encrypted with a password that is not empty.
    """
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnsupportedDocumentError(f"document {name!r} is an encrypted PDF: remove its password first")
        pages = [page.extract_text() for page in reader.pages]
        headings = _outline_headings(reader)
        title = str(reader.metadata.title or "").strip() if reader.metadata else ""
    except UnsupportedDocumentError:
        raise
    # A broken PDF makes pypdf fail in many ways, its own errors being only the most frequent.
    except (PyPdfError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise UnsupportedDocumentError(f"document {name!r} is not a PDF that can be read: {reason}") from error
    except (NotImplementedError, ImportError) as error:
        raise UnsupportedDocumentError(f"document {name!r} is a PDF of an unsupported kind: {error}") from error
    title = "" if title.lower() in PLACEHOLDER_TITLES else _clean(title)
    return ParsedDocument(tuple(_blocks([_clean(page) for page in pages], headings)), title or None)


def _clean(text: str) -> str:
    """Drop what no text encoding can hold: a PDF's font tables may name any code point."""
    return text.encode("utf-8", "ignore").decode("utf-8").replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")


def _outline_headings(reader: PdfReader) -> dict[tuple[int, str], int]:
    """Heading levels by page number and line of text, from the outline (bookmarks), nested at most six deep."""
    headings: dict[tuple[int, str], int] = {}
    stack: list[tuple[Sequence[object], int]] = [(reader.outline, 1)]
    while stack:
        entries, level = stack.pop()
        for entry in entries:
            if isinstance(entry, list):
                stack.append((entry, min(level + 1, 6)))
            elif isinstance(entry, Destination):
                page = reader.get_destination_page_number(entry)
                if page is not None and entry.title:
                    headings.setdefault((page, " ".join(str(entry.title).split())), level)
    return headings


def _blocks(pages: list[str], headings: dict[tuple[int, str], int]) -> list[Block]:
    """Blocks of all pages; a paragraph goes on over a page's end."""
    blocks: list[Block] = []
    paragraph_lines: list[str] = []

    def flush() -> None:
        text = HYPHENATED.sub("", "\n".join(paragraph_lines))
        blocks.extend(Block(paragraph) for paragraph in split_paragraphs(text))
        paragraph_lines.clear()

    for number, page in enumerate(pages):
        for line in page.split("\n"):
            heading = " ".join(line.split())
            level = headings.get((number, heading))
            if level is None:
                paragraph_lines.append(line.rstrip())
            else:
                flush()
                blocks.append(Block(heading, level=level))
    flush()
    return blocks
