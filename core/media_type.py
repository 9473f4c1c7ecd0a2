"""Which parser a document needs: from its media type, or from its name."""

from pathlib import PurePosixPath

__all__ = ["DOCX", "MEDIA_TYPES", "PPTX", "XLSX", "guess_media_type", "split_media_type"]

_OPEN_XML = "application/vnd.openxmlformats-officedocument"
DOCX = f"{_OPEN_XML}.wordprocessingml.document"
PPTX = f"{_OPEN_XML}.presentationml.presentation"
XLSX = f"{_OPEN_XML}.spreadsheetml.sheet"

MEDIA_TYPES = {
    ".txt": "text/plain",
    ".text": "text/plain",
    ".rst": "text/plain",
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".html": "text/html",
    ".htm": "text/html",
    ".xhtml": "text/html",
    ".pdf": "application/pdf",
    ".docx": DOCX,
    ".pptx": PPTX,
    ".xlsx": XLSX,
    ".csv": "text/csv",
}
ALIASES = {
    "application/xhtml+xml": "text/html",
    "text/x-markdown": "text/markdown",
    "application/x-pdf": "application/pdf",
    "application/csv": "text/csv",
}


def guess_media_type(name: str) -> str | None:
    """Guess from a name's extension; None where it names no kind of document that can be parsed."""
    return MEDIA_TYPES.get(PurePosixPath(name.replace("\\", "/")).suffix.lower())


def split_media_type(media_type: str) -> tuple[str, str | None]:
    """Split `text/html; charset=utf-8` into the bare lower-case type and the charset, if it names one."""
    from email.message import Message

    header = Message()
    header["Content-Type"] = media_type.replace("\r", " ").replace("\n", " ")
    charset = header.get_param("charset")
    bare = media_type.partition(";")[0].strip().lower()
    return ALIASES.get(bare, bare), charset if isinstance(charset, str) and charset else None
