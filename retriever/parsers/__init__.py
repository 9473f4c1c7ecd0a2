"""Turn the bytes of a document (txt, md, html, pdf, docx, pptx, xlsx, csv) into headings and blocks of text."""

from kvblend.core import media_type as media_types
from kvblend.core.errors import UnsupportedDocumentError
from kvblend.core.media_type import MEDIA_TYPES, guess_media_type, split_media_type
from kvblend.retriever.document import ParsedDocument
from kvblend.retriever.parsers.decoding import decode_text
from kvblend.retriever.parsers.html import parse_html
from kvblend.retriever.parsers.markdown import parse_markdown
from kvblend.retriever.parsers.office import parse_csv, parse_office
from kvblend.retriever.parsers.pdf import parse_pdf
from kvblend.retriever.parsers.plain_text import parse_plain_text

__all__ = ["guess_media_type", "parse_document", "require_media_type"]


def parse_document(data: bytes, media_type: str | None, *, name: str) -> ParsedDocument:
    """Parse a document by its media type (parameters such as `charset` are heeded), or by its name where that is None.

    Raises:
        UnsupportedDocumentError: no parser reads that type, or the bytes are not what they are said to be.
    """
    bare, charset = require_media_type(media_type, name=name)
    match bare:
        case "text/plain":
            return parse_plain_text(decode_text(data, charset=charset, name=name))
        case "text/markdown":
            return parse_markdown(decode_text(data, charset=charset, name=name))
        case "text/html":
            return parse_html(data, charset=charset, name=name)
        case "application/pdf":
            return parse_pdf(data, name=name)
        case "text/csv":
            return parse_csv(data, charset=charset, name=name)
        case media_types.DOCX | media_types.PPTX | media_types.XLSX:
            return parse_office(data, bare, name=name)
    raise AssertionError(f"no parser for {bare!r}")


def require_media_type(media_type: str | None, *, name: str) -> tuple[str, str | None]:
    """The bare media type of a document and its charset, where it names one.

    Raises:
        UnsupportedDocumentError: no parser reads that type.
    """
    bare, charset = split_media_type(media_type or guess_media_type(name) or "")
    supported = sorted(set(MEDIA_TYPES.values()))
    if bare not in supported:
        what = f"of media type {bare!r}" if bare else "of a kind that its name does not tell"
        raise UnsupportedDocumentError(
            f"document {name!r} is {what}; supported: {', '.join(supported)}", param="media_type"
        )
    return bare, charset
