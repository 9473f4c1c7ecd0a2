"""Word, PowerPoint, Excel and CSV: by way of Markdown, as markitdown makes it."""

import io
import re

from kvblend.core.errors import UnsupportedDocumentError
from kvblend.core.media_type import DOCX, PPTX, XLSX
from kvblend.retriever.document import ParsedDocument
from kvblend.retriever.parsers.decoding import decode_text
from kvblend.retriever.parsers.markdown import parse_markdown

__all__ = ["parse_csv", "parse_office"]

MAX_TOLD = 200
SLIDE_MARK = re.compile(r"^<!-- Slide number: \d+ -->$", re.MULTILINE)
EMPTY_CELL = re.compile(r"(?<=\| )NaN(?= \|)")
"""What markitdown makes of a cell that holds nothing."""


def parse_office(data: bytes, media_type: str, *, name: str) -> ParsedDocument:
    """Parse a docx, pptx or xlsx; a slide or a sheet is a section, a table a Markdown table.

    Raises:
        UnsupportedDocumentError: the file is broken, encrypted, or not what it is said to be.
    """
    # markitdown takes seconds to import, and its own guess of a file's kind loads a neural network
    from markitdown import StreamInfo
    from markitdown.converters import DocxConverter, PptxConverter, XlsxConverter

    suffix, converter = {
        DOCX: (".docx", DocxConverter),
        PPTX: (".pptx", PptxConverter),
        XLSX: (".xlsx", XlsxConverter),
    }[media_type]
    try:
        converted = converter().convert(io.BytesIO(data), StreamInfo(extension=suffix, mimetype=media_type))
    except (MemoryError, SystemError):
        raise
    except Exception as error:  # the readers behind it raise whatever a broken file makes of them
        told = f"{type(error).__name__}: {error}"[:MAX_TOLD]
        raise UnsupportedDocumentError(f"document {name!r} is no {suffix[1:]} that can be read ({told})") from error
    markdown = SLIDE_MARK.sub("", converted.markdown)
    return parse_markdown(EMPTY_CELL.sub("", markdown) if media_type == XLSX else markdown)


def parse_csv(data: bytes, *, charset: str | None, name: str) -> ParsedDocument:
    """Parse comma-separated values as one table, whose first row names the columns.

    Raises:
        UnsupportedDocumentError: the bytes are no text.
    """
    from markitdown import StreamInfo
    from markitdown.converters import CsvConverter

    text = decode_text(data, charset=charset, name=name)
    try:
        converted = CsvConverter().convert(io.BytesIO(text.encode()), StreamInfo(extension=".csv", charset="utf-8"))
    except ValueError as error:
        raise UnsupportedDocumentError(f"document {name!r} is no CSV that can be read: {error}"[:MAX_TOLD]) from error
    return parse_markdown(converted.markdown)
