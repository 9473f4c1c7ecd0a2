"""Check what a caller says of a document, and hash what its passages depend on."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from kvblend.core.errors import InvalidRequestError
from kvblend.core.media_type import guess_media_type
from kvblend.core.text import is_text
from kvblend.retriever.records import NewDocument

__all__ = ["MAX_ID_CHARACTERS", "describe_document", "encode_text"]

MAX_ID_CHARACTERS = 512


def encode_text(text: str) -> bytes:
    """The UTF-8 bytes of a text.

    Raises:
        InvalidRequestError: it holds a lone surrogate.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"the text holds a lone surrogate at character {error.start}, which is no text", param="text"
        ) from error


def describe_document(
    data: bytes,
    *,
    splitter: str,
    document_id: str | None,
    name: str | None,
    media_type: str | None,
    metadata: Mapping[str, Any] | None,
) -> NewDocument:
    """Fill in what the caller left out: the id is the name, or else a hash of the data; the name is the id.

    `splitter` names all but the data that the passages depend on.

    Raises:
        InvalidRequestError: the id or the name is empty, too long or no text; the metadata is not JSON.
    """
    digest = hashlib.sha256(data)
    document_id = document_id if document_id is not None else name if name is not None else digest.hexdigest()
    name = name if name is not None else document_id
    for param, value in (("id", document_id), ("name", name)):
        if not 1 <= len(value) <= MAX_ID_CHARACTERS:
            bound = f"1 to {MAX_ID_CHARACTERS}"
            raise InvalidRequestError(f"a document's {param} has {bound} characters, not {len(value)}", param=param)
        if "\0" in value or not is_text(value):
            raise InvalidRequestError(f"a document's {param} holds a character that is no text: {value!r}", param=param)
    media_type = media_type or guess_media_type(name) or ""
    if not is_text(media_type):
        raise InvalidRequestError("a document's media_type holds a character that is no text", param="media_type")
    try:
        json.dumps(metadata := dict(metadata or {}), allow_nan=False, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError("a document's metadata holds half a surrogate pair", param="metadata") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"a document's metadata must be JSON: {error}", param="metadata") from error
    digest.update(f"\0{media_type}\0{splitter}".encode("utf-8", "replace"))
    return NewDocument(document_id, name, media_type, digest.hexdigest(), metadata)
