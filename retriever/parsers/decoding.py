"""Bytes to text, strictly: a document that is not text is refused, never half read."""

import codecs

from kvblend.core.errors import UnsupportedDocumentError
from kvblend.core.text import is_text

__all__ = ["decode_text"]

BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode_text(data: bytes, *, charset: str | None, name: str) -> str:
    """Decode by the byte order mark, else by `charset`, else as UTF-8; line ends become `\\n`.

    Raises:
        UnsupportedDocumentError: the bytes are not text in that encoding, or the encoding is not known.
    """
    encoding = next((encoding for mark, encoding in BYTE_ORDER_MARKS if data.startswith(mark)), charset or "utf-8")
    try:
        if not codecs.lookup(encoding)._is_text_encoding:
            raise LookupError(encoding)
        text = data.decode(encoding)
    except UnicodeError as error:  # of some encodings without a place
        where = f"byte {error.start} cannot be decoded" if isinstance(error, UnicodeDecodeError) else "it breaks off"
        raise UnsupportedDocumentError(f"document {name!r} is not {encoding} text: {where} ({error})") from error
    except (LookupError, ValueError) as error:
        raise UnsupportedDocumentError(f"document {name!r} names an unknown text encoding: {encoding!r}") from error
    if not is_text(text):
        raise UnsupportedDocumentError(f"document {name!r} is not {encoding} text: it holds half a surrogate pair")
    if "\0" in text:
        raise UnsupportedDocumentError(f"document {name!r} is not text: it holds a NUL character")
    return text.replace("\r\n", "\n").replace("\r", "\n")
